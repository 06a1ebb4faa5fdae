#include "device/known_gpus.h"

#include <fmt/ranges.h>

#include <algorithm>
#include <cctype>
#include <vector>

#include "base/check.h"
#include "base/shown.h"
#include "config/nearest.h"

namespace deepinfer {
namespace {

// GB a second in one direction, and whether cards read each other's memory. The driver does not let GeForce
// cards do that over PCIe.
constexpr CardLink kPcie3{"PCIe 3.0", 16, false, false}, kPcie3Peer{"PCIe 3.0", 16, true, false};
constexpr CardLink kPcie4{"PCIe 4.0", 32, false, false}, kPcie4Peer{"PCIe 4.0", 32, true, false};
constexpr CardLink kPcie5{"PCIe 5.0", 64, false, false}, kPcie5Peer{"PCIe 5.0", 64, true, false};
constexpr CardLink kPcie4x8{"PCIe 4.0 x8", 16, false, false}, kPcie5x8{"PCIe 5.0 x8", 32, false, false};
constexpr CardLink kNvlink2{"NVLink", 150, true, true}, kNvlink3{"NVLink", 300, true, true};
constexpr CardLink kNvlink4{"NVLink", 450, true, true}, kNvlink5{"NVLink", 900, true, true};

// Memory: memory.total as nvidia-smi prints it for such a card, ECC as it is delivered; a driver may move it
// by some tens of MiB. Compute capability: NVIDIA's list, developer.nvidia.com/cuda-gpus. Cards below 8.0 are
// here so that the answer says why they do not do. Bandwidth and rates: NVIDIA's data sheets and white
// papers, of dense products of bfloat16 (float16 where there is none) with sums in float32; of H100 and A100
// the boards with NVLink.
constexpr KnownGpu kGpus[] = {
    {"NVIDIA GeForce RTX 5060", 8151, {12, 0}, 448, 38.4, kPcie5x8},
    {"NVIDIA GeForce RTX 5060 Ti 8GB", 8151, {12, 0}, 448, 47.4, kPcie5x8},
    {"NVIDIA GeForce RTX 4060", 8188, {8, 9}, 272, 30.3, kPcie4x8},
    {"NVIDIA GeForce RTX 4060 Ti 8GB", 8188, {8, 9}, 288, 44.1, kPcie4x8},
    {"NVIDIA GeForce RTX 3060 Ti", 8192, {8, 6}, 448, 32.4, kPcie4},
    {"NVIDIA GeForce RTX 3070", 8192, {8, 6}, 448, 40.6, kPcie4},
    {"NVIDIA GeForce RTX 3070 Ti", 8192, {8, 6}, 608, 43.5, kPcie4},
    {"NVIDIA GeForce RTX 3080", 10240, {8, 6}, 760, 59.5, kPcie4},
    {"NVIDIA GeForce RTX 2080 Ti", 11264, {7, 5}, 616, 53.8, kPcie3},
    {"NVIDIA GeForce RTX 5070", 12227, {12, 0}, 672, 61.7, kPcie5},
    {"NVIDIA GeForce RTX 4070", 12282, {8, 9}, 504, 58.3, kPcie4},
    {"NVIDIA GeForce RTX 4070 SUPER", 12282, {8, 9}, 504, 71, kPcie4},
    {"NVIDIA GeForce RTX 4070 Ti", 12282, {8, 9}, 504, 80.1, kPcie4},
    {"NVIDIA GeForce RTX 3060", 12288, {8, 6}, 360, 25.5, kPcie4},
    {"NVIDIA GeForce RTX 3080 Ti", 12288, {8, 6}, 912, 68.2, kPcie4},
    {"Tesla T4", 15360, {7, 5}, 320, 65, kPcie3Peer},
    {"NVIDIA GeForce RTX 5070 Ti", 16303, {12, 0}, 896, 87.9, kPcie5},
    {"NVIDIA GeForce RTX 5080", 16303, {12, 0}, 960, 112.6, kPcie5},
    {"NVIDIA GeForce RTX 5060 Ti 16GB", 16311, {12, 0}, 448, 47.4, kPcie5x8},
    {"NVIDIA GeForce RTX 4070 Ti SUPER", 16376, {8, 9}, 672, 88.2, kPcie4},
    {"NVIDIA GeForce RTX 4080", 16376, {8, 9}, 717, 97.5, kPcie4},
    {"NVIDIA GeForce RTX 4080 SUPER", 16376, {8, 9}, 736, 104.4, kPcie4},
    {"NVIDIA RTX A4000", 16376, {8, 6}, 448, 76.7, kPcie4Peer},
    {"NVIDIA GeForce RTX 4060 Ti 16GB", 16380, {8, 9}, 288, 44.1, kPcie4x8},
    {"Tesla V100-SXM2-16GB", 16384, {7, 0}, 900, 125, kNvlink2},
    {"NVIDIA RTX 4000 Ada Generation", 20475, {8, 9}, 360, 81.9, kPcie4Peer},
    {"NVIDIA A10", 23028, {8, 6}, 600, 125, kPcie4Peer},
    {"NVIDIA A10G", 23028, {8, 6}, 600, 70, kPcie4Peer},
    {"NVIDIA L4", 23034, {8, 9}, 300, 121, kPcie4Peer},
    {"NVIDIA GeForce RTX 3090 Ti", 24564, {8, 6}, 1008, 80, kPcie4},
    {"NVIDIA GeForce RTX 4090", 24564, {8, 9}, 1008, 165.2, kPcie4},
    {"NVIDIA RTX A5000", 24564, {8, 6}, 768, 111.1, kPcie4Peer},
    {"NVIDIA A30", 24576, {8, 0}, 933, 165, kPcie4Peer},
    {"NVIDIA GeForce RTX 3090", 24576, {8, 6}, 936, 71, kPcie4},
    {"NVIDIA GeForce RTX 5090", 32607, {12, 0}, 1792, 209.5, kPcie5},
    {"NVIDIA RTX 5000 Ada Generation", 32760, {8, 9}, 576, 261.1, kPcie4Peer},
    {"NVIDIA A100 40GB", 40960, {8, 0}, 1555, 312, kNvlink3},
    {"NVIDIA A40", 46068, {8, 6}, 696, 149.7, kPcie4Peer},
    {"NVIDIA L40", 46068, {8, 9}, 864, 181, kPcie4Peer},
    {"NVIDIA L40S", 46068, {8, 9}, 864, 362, kPcie4Peer},
    {"NVIDIA RTX 6000 Ada Generation", 49140, {8, 9}, 960, 364.2, kPcie4Peer},
    {"NVIDIA RTX A6000", 49140, {8, 6}, 768, 154.8, kPcie4Peer},
    {"NVIDIA H100 80GB", 81559, {9, 0}, 3352, 989, kNvlink4},
    {"NVIDIA A100 80GB", 81920, {8, 0}, 2039, 312, kNvlink3},
    {"NVIDIA H100 NVL", 95830, {9, 0}, 3938, 835, kNvlink3},
    {"NVIDIA GH200 96GB", 97871, {9, 0}, 4000, 989, kNvlink4},
    {"NVIDIA RTX PRO 6000 Blackwell", 97887, {12, 0}, 1792, 503.8, kPcie5Peer},
    {"NVIDIA H200", 143771, {9, 0}, 4800, 989, kNvlink4},
    {"NVIDIA B200", 183359, {10, 0}, 8000, 2250, kNvlink5},
};

// In lower case, "nvidia" and "geforce" left out.
std::vector<std::string> words_of(std::string_view text) {
  std::vector<std::string> words(1);
  for (const char c : text) {
    const auto u = static_cast<unsigned char>(c);
    if (std::isalnum(u) != 0)
      words.back() += static_cast<char>(std::tolower(u));
    else if (!words.back().empty())
      words.emplace_back();
  }
  std::erase_if(words, [](const std::string& w) { return w.empty() || w == "nvidia" || w == "geforce"; });
  return words;
}

bool has_all(const std::vector<std::string>& words, const std::vector<std::string>& wanted) {
  return std::all_of(wanted.begin(), wanted.end(), [&](const std::string& w) {
    return std::find(words.begin(), words.end(), w) != words.end();
  });
}

std::string short_name(const KnownGpu& gpu) {
  std::string_view name = gpu.name;
  for (const std::string_view maker : {"NVIDIA ", "GeForce "})
    if (name.starts_with(maker)) name.remove_prefix(maker.size());
  return std::string(name);
}

std::string list_of(const std::vector<KnownGpu>& gpus) {
  std::vector<std::string> names;
  for (const KnownGpu& gpu : gpus) names.push_back(short_name(gpu));
  return fmt::format("{}", fmt::join(names, ", "));
}

Error unknown(std::string_view name) {
  std::vector<std::string> names;
  for (const KnownGpu& gpu : kGpus) names.push_back(short_name(gpu));
  // "RTX 5909" is near "RTX 5090", and "5909" near "5090".
  std::vector<std::string> parts = names;
  for (const KnownGpu& gpu : kGpus)
    for (std::string& word : words_of(gpu.name))
      if (word.size() > 3) parts.push_back(std::move(word));
  const std::vector<std::string_view> views(parts.begin(), parts.end());
  const std::string_view near = nearest(name, views);
  return make_error(ErrorCode::kConfig,
                    "--gpu: unknown card '{}'{}; known: {}; any other one by its memory: --memory 24GiB",
                    shown(std::string(name)), near.empty() ? "" : fmt::format(" (did you mean '{}'?)", near),
                    fmt::join(names, ", "));
}

}  // namespace

std::optional<KnownGpu> card_called(std::string_view name) {
  const std::vector<std::string> words = words_of(name);
  if (has_all(words, {"laptop"})) return std::nullopt;
  std::optional<KnownGpu> best;
  size_t most = 0;
  for (const KnownGpu& gpu : kGpus) {
    const std::vector<std::string> own = words_of(gpu.name);
    if (own.size() <= most || !has_all(words, own)) continue;
    best = gpu;
    most = own.size();
  }
  return best;
}

std::span<const KnownGpu> known_gpus() {
  return kGpus;
}

Result<KnownGpu> find_known_gpu(std::string_view name) {
  const std::vector<std::string> wanted = words_of(name);
  std::vector<KnownGpu> fitting;
  for (const KnownGpu& gpu : kGpus) {
    const std::vector<std::string> words = words_of(gpu.name);
    if (!has_all(words, wanted)) continue;
    if (words.size() == wanted.size()) return gpu;
    fitting.push_back(gpu);
  }
  if (wanted.empty() || fitting.empty()) return unknown(name);
  // "4070" is no "4070 Ti".
  size_t fewest = SIZE_MAX;
  for (const KnownGpu& gpu : fitting) fewest = std::min(fewest, words_of(gpu.name).size());
  std::erase_if(fitting, [&](const KnownGpu& gpu) { return words_of(gpu.name).size() > fewest; });
  if (fitting.size() > 1)
    return make_error(ErrorCode::kConfig, "--gpu: several cards are called '{}': {}; expected one of them",
                      shown(std::string(name)), list_of(fitting));
  return fitting.front();
}

}  // namespace deepinfer
