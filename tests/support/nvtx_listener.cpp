// A tool that listens to NVTX ranges, as Nsight Systems does: NVTX loads it by NVTX_INJECTION64_PATH and lets
// it put functions of its own in place. take_ranges() gives what was heard since the last call.
#include <nvtx3/nvToolsExt.h>

#include <string>

namespace {

std::string& heard() {
  static std::string text;
  return text;
}

// A domain and a string are pointers to whatever the tool likes: a text each.
nvtxDomainHandle_t create_domain(const char* name) {
  static std::string domain;
  domain = name;
  return reinterpret_cast<nvtxDomainHandle_t>(&domain);
}

nvtxStringHandle_t register_string(nvtxDomainHandle_t, const char* text) {
  return reinterpret_cast<nvtxStringHandle_t>(new std::string(text));  // as long as the process
}

int push(nvtxDomainHandle_t domain, const nvtxEventAttributes_t* event) {
  const bool ours = *reinterpret_cast<const std::string*>(domain) == "deepinfer";
  const bool registered = event->messageType == NVTX_MESSAGE_TYPE_REGISTERED;
  heard() +=
      ours && registered ? "+" + *reinterpret_cast<const std::string*>(event->message.registered) : "?";
  heard() += '\n';
  return 0;
}

int pop(nvtxDomainHandle_t) {
  heard() += "-\n";
  return 0;
}

template <class Function>
void put(NvtxFunctionTable table, unsigned size, unsigned id, Function* function) {
  if (id < size && table[id] != nullptr) *table[id] = reinterpret_cast<NvtxFunctionPointer>(function);
}

}  // namespace

extern "C" {

int InitializeInjectionNvtx2(NvtxGetExportTableFunc_t get_table) {
  const auto* callbacks = static_cast<const NvtxExportTableCallbacks*>(get_table(NVTX_ETID_CALLBACKS));
  NvtxFunctionTable table = nullptr;
  unsigned size = 0;
  if (callbacks == nullptr || callbacks->GetModuleFunctionTable(NVTX_CB_MODULE_CORE2, &table, &size) != 1)
    return 0;
  put(table, size, NVTX_CBID_CORE2_DomainCreateA, create_domain);
  put(table, size, NVTX_CBID_CORE2_DomainRegisterStringA, register_string);
  put(table, size, NVTX_CBID_CORE2_DomainRangePushEx, push);
  put(table, size, NVTX_CBID_CORE2_DomainRangePop, pop);
  return 1;
}

const char* take_ranges() {
  static std::string taken;
  taken.swap(heard());
  heard().clear();
  return taken.c_str();
}
}
