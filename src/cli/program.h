// deepinfer: one program, one command each for serving, chatting, measuring and showing settings.
#pragma once

namespace deepinfer {

// The whole of main(); the exit code. Once a process.
int run_program(int argc, char** argv);

}  // namespace deepinfer
