#include "comm/nccl.h"

#include "base/check.h"

namespace deepinfer {
namespace {

constexpr const char* kFile = "libnccl.so.2";

template <class Function>
Result<void> take(const SharedLibrary& library, const char* name, Function*& function) {
  DI_ASSIGN(function, library.symbol<Function>(name));
  return {};
}

Result<NcclApi> read(const SharedLibrary& library) {
  NcclApi a;
  a.path = library.path();
  DI_TRY(take(library, "ncclGetVersion", a.get_version));
  if (a.get_version(&a.version) != nccl::Code::kSuccess)
    return make_error(ErrorCode::kUnavailable, "it does not say its version");
  if (a.version < nccl::kOldest)
    return make_error(ErrorCode::kUnavailable,
                      "version {}, expected {} or newer: older ones know the settings of a communicator "
                      "(ncclConfig_t) in another layout",
                      nccl_version_text(a.version), nccl_version_text(nccl::kOldest));
  DI_TRY(take(library, "ncclGetErrorString", a.error_string));
  DI_TRY(take(library, "ncclGetLastError", a.last_error));
  DI_TRY(take(library, "ncclGetUniqueId", a.get_unique_id));
  DI_TRY(take(library, "ncclCommInitRank", a.comm_init_rank));
  DI_TRY(take(library, "ncclCommInitRankConfig", a.comm_init_rank_config));
  DI_TRY(take(library, "ncclCommDestroy", a.comm_destroy));
  DI_TRY(take(library, "ncclCommAbort", a.comm_abort));
  DI_TRY(take(library, "ncclCommGetAsyncError", a.comm_async_error));
  DI_TRY(take(library, "ncclAllReduce", a.all_reduce));
  DI_TRY(take(library, "ncclAllGather", a.all_gather));
  DI_TRY(take(library, "ncclBroadcast", a.broadcast));
  DI_TRY(take(library, "ncclSend", a.send));
  DI_TRY(take(library, "ncclRecv", a.receive));
  DI_TRY(take(library, "ncclGroupStart", a.group_start));
  DI_TRY(take(library, "ncclGroupEnd", a.group_end));
  return a;
}

}  // namespace

std::string nccl_version_text(int version) {
  const int major = version < 10000 ? 1000 : 10000;
  return fmt::format("{}.{}.{}", version / major, version % major / 100, version % 100);
}

Result<NcclApi> load_nccl(const std::vector<LibraryFolder>& folders, const std::string& file) {
  const LibrarySpec spec{
      .name = "NCCL",
      .files = {file},
      .remedy =
          "Only a model on several GPUs needs it. Install NCCL for CUDA 13 (PyPI: "
          "nvidia-nccl-cu13), or set DEEPINFER_CUDA_LIB_DIR to the folder that has libnccl.so.2.",
      .check = [](const SharedLibrary& library) -> Result<void> {
        DI_TRY(read(library));
        return {};
      }};
  DI_ASSIGN(const SharedLibrary library, load_library(spec, folders));
  return read(library);
}

Result<NcclApi> load_nccl() {
  return load_nccl(library_folders(), kFile);
}

}  // namespace deepinfer
