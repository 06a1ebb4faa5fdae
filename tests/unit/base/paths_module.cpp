// A module with code of base in it, as the Python package's extension module has.
#include <string>

#include "base/paths.h"

extern "C" const char* di_own_file() {
  static const std::string file = deepinfer::own_file().string();
  return file.c_str();
}
