// Which split of a model over several devices fits, and which is fastest: the memory of engine/estimate.h,
// the times of engine/step_time.h, and what is known of cards and their links (device/known_gpus.h). Nothing
// is loaded and nothing of a card is measured.
#pragma once

#include <optional>
#include <span>
#include <string>
#include <vector>

#include "deepinfer/config.h"
#include "deepinfer/result.h"
#include "device/gpu_info.h"
#include "engine/estimate.h"
#include "engine/host_rates.h"
#include "engine/step_time.h"
#include "model/checkpoint.h"

namespace deepinfer {

// "TP 2, DP 4", "one device".
std::string split_text(const Split& split);
// The flags that ask for it: "--tensor-parallel-size 2"; empty for one device.
std::string split_flags(const Split& split);

// The devices of one machine.
struct SplitMachine {
  std::vector<GpuInfo> gpus;      // cards may differ: the least counts; empty: the CPU
  std::optional<HostRates> host;  // the CPU's
  int threads = 1;                // of the CPU, to be dealt
  int64_t memory_bytes = 0;       // the CPU's memory limit
};

struct SplitPlan {
  Split split;
  Estimate memory;                 // of a replica: of its fullest card
  std::optional<StepRates> rates;  // unset: nobody knows how fast these devices are, or it does not fit
  int batch = 0;                   // sequences of a replica that the rates are for
  std::string unavailable;         // why this version does not serve it so; empty: it does

  bool usable() const { return memory.fits() && unavailable.empty(); }
};

// What of a split is given; 0: free.
struct SplitWish {
  int tensor = 0, pipeline = 0, data = 0;
};

// The best first: what can be served before what cannot; on cards that do not read each other's memory whole
// replicas before shared layers, where a card holds the model; then the most requests a second; then fewer
// devices. Of each tensor and pipeline size the most replicas that there are devices for, unless wished
// otherwise. The checkpoint's quantization has been set. kConfig: the wish takes more devices than there are,
// or cannot be dealt; errors of estimate().
Result<std::vector<SplitPlan>> plan_splits(const Config& config, const Checkpoint& checkpoint,
                                           const SplitMachine& machine, const SplitWish& wish,
                                           const Load& load);

// gpu.tensor_parallel_size auto: 1 on the CPU (no cards); on cards the least number that the model fits on,
// for `replicas` of it and with the pipeline that the settings say. The checkpoint's quantization has been
// set. kMemory: it fits on none (fitting_splits() says what would).
Result<Split> choose_split(const Config& config, const Checkpoint& checkpoint, std::span<const GpuInfo> gpus,
                           int replicas = 1);

// What to change so that a model fits these cards, each tried: fewest changes first, flags and figures in a
// line. Sets other quantizations while it works, and the old one when it ends.
std::vector<std::string> fitting_splits(const Config& config, Checkpoint& checkpoint,
                                        std::span<const GpuInfo> gpus);

// The card with the least memory.
const GpuInfo& smallest_card(std::span<const GpuInfo> gpus);

// Whether cards read each other's memory: what was probed, else what is known of them by name.
bool have_peer_access(std::span<const GpuInfo> gpus);

}  // namespace deepinfer
