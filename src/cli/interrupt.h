// Ctrl-C and SIGTERM for commands whose work is long and can go on later where it was: they ask
// interrupted().
#pragma once

namespace deepinfer {

constexpr int kInterruptedExit = 130;  // what a shell gives a program that SIGINT ended

// From here on the first signal sets interrupted(), the second ends the program. A file that grows beyond the
// limit of the process becomes an error of the write. Main thread.
void catch_interrupts();

// Any thread.
bool interrupted();

}  // namespace deepinfer
