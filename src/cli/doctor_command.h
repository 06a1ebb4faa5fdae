// deepinfer doctor: what of this machine keeps a model from running, or makes it slow.
#pragma once

namespace deepinfer {

class ConfigFlags;

struct DoctorOptions {
  bool json = false;
  bool hub = false;  // ask the hub too; else nothing goes over the network
};

// Prints a line for each thing it looked at, with the command that mends it. Returns the exit code: 1 when
// there is a problem, 0 also with warnings.
int doctor_command(const ConfigFlags& flags, const DoctorOptions& options);

}  // namespace deepinfer
