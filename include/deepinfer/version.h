// The version of the library and of the program.
#pragma once

namespace deepinfer {

// "0.1.0", from CMakeLists.txt.
const char* version();

}  // namespace deepinfer
