#include "cli/program.h"

int main(int argc, char** argv) {
  return deepinfer::run_program(argc, argv);
}
