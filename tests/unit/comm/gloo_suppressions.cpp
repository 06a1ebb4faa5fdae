// Gloo comes without ThreadSanitizer's instrumentation, so its own atomics are not seen: reports inside of it
// say nothing. Races between our own threads are still reported.
extern "C" const char* __tsan_default_suppressions();
extern "C" const char* __tsan_default_suppressions() {
  return "race:libgloo.so\n";
}
