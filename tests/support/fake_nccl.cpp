// A stand-in for libnccl.so.2: says the version FAKE_NCCL_VERSION, and does nothing. FAKE_NCCL_LACKING:
// without ncclCommInitRankConfig.
extern "C" {

int ncclGetVersion(int* version) {
  *version = FAKE_NCCL_VERSION;
  return FAKE_NCCL_VERSION == 0 ? 3 : 0;
}
const char* ncclGetErrorString(int) {
  return "an error of the stand-in";
}
const char* ncclGetLastError(void*) {
  return "";
}
int ncclGetUniqueId(void* id) {
  static_cast<char*>(id)[127] = 7;
  return 0;
}
#ifndef FAKE_NCCL_LACKING
int ncclCommInitRankConfig() {
  return 0;
}
#endif
int ncclCommInitRank() {
  return 0;
}
int ncclCommDestroy() {
  return 0;
}
int ncclCommAbort() {
  return 0;
}
int ncclCommGetAsyncError() {
  return 0;
}
int ncclAllReduce() {
  return 0;
}
int ncclAllGather() {
  return 0;
}
int ncclBroadcast() {
  return 0;
}
int ncclSend() {
  return 0;
}
int ncclRecv() {
  return 0;
}
int ncclGroupStart() {
  return 0;
}
int ncclGroupEnd() {
  return 0;
}

}  // extern "C"
