// NCCL, what several GPUs talk through, loaded at run time. Declares what it calls by itself: not every
// machine that builds this has nccl.h.
#pragma once

#include <cstddef>
#include <filesystem>
#include <string>
#include <vector>

#include "base/shared_library.h"
#include "deepinfer/result.h"

struct CUstream_st;

namespace deepinfer {

// Layouts and values of NCCL's public interface, as nccl.h has them. Structures only grow at their end, and
// say themselves how large they are.
namespace nccl {

enum class Code : int { kSuccess = 0, kInProgress = 7 };  // the others are failures
enum class Type : int { kInt8 = 0, kInt32 = 2, kF16 = 6, kF32 = 7, kBF16 = 9 };
enum class Operation : int { kSum = 0, kMax = 2 };

struct Comm;  // a communicator
struct UniqueId {
  char internal[128];
};

constexpr int kOldest = 21800;               // the version of Config below
constexpr int kUndefined = -2147483647 - 1;  // NCCL decides
constexpr unsigned kConfigMagic = 0xcafebeefu;

struct Config {
  size_t size = sizeof(Config);
  unsigned magic = kConfigMagic;
  unsigned version = kOldest;
  int blocking = kUndefined;  // 0: calls return kInProgress, so that a lost peer does not hang its caller
  int cga_cluster_size = kUndefined, min_ctas = kUndefined, max_ctas = kUndefined;
  const char* net_name = nullptr;
  int split_share = kUndefined;
};

}  // namespace nccl

// The functions in use. Any thread may call them, each communicator by one at a time.
struct NcclApi {
  using Stream = CUstream_st*;
  nccl::Code (*get_version)(int*) = nullptr;
  const char* (*error_string)(nccl::Code) = nullptr;
  const char* (*last_error)(nccl::Comm*) = nullptr;  // in words, of the thread; null: of any communicator
  nccl::Code (*get_unique_id)(nccl::UniqueId*) = nullptr;
  nccl::Code (*comm_init_rank)(nccl::Comm**, int ranks, nccl::UniqueId, int rank) = nullptr;
  nccl::Code (*comm_init_rank_config)(nccl::Comm**, int ranks, nccl::UniqueId, int rank,
                                      nccl::Config*) = nullptr;
  nccl::Code (*comm_destroy)(nccl::Comm*) = nullptr;
  nccl::Code (*comm_abort)(nccl::Comm*) = nullptr;
  nccl::Code (*comm_async_error)(nccl::Comm*, nccl::Code*) = nullptr;
  nccl::Code (*all_reduce)(const void* from, void* to, size_t count, nccl::Type, nccl::Operation, nccl::Comm*,
                           Stream) = nullptr;
  nccl::Code (*all_gather)(const void* from, void* to, size_t count, nccl::Type, nccl::Comm*,
                           Stream) = nullptr;
  nccl::Code (*broadcast)(const void* from, void* to, size_t count, nccl::Type, int root, nccl::Comm*,
                          Stream) = nullptr;
  nccl::Code (*send)(const void* from, size_t count, nccl::Type, int peer, nccl::Comm*, Stream) = nullptr;
  nccl::Code (*receive)(void* to, size_t count, nccl::Type, int peer, nccl::Comm*, Stream) = nullptr;
  nccl::Code (*group_start)() = nullptr;
  nccl::Code (*group_end)() = nullptr;

  int version = 0;             // 22703 for 2.27.3
  std::filesystem::path path;  // the file that was taken
};

// "2.27.3"; "2.4.8" for 2408, as versions before 2.9 count.
std::string nccl_version_text(int version);

// From the folders in order, then from the loader's path; 2.18 or newer. kUnavailable lists every place with
// what was wrong there, then what to install.
Result<NcclApi> load_nccl();
// The same for other places and another name of the file, for tests.
Result<NcclApi> load_nccl(const std::vector<LibraryFolder>& folders, const std::string& file);

}  // namespace deepinfer
