// A library for the tests of the search; built once for each version.
extern "C" int di_sample_version() {
  return DI_SAMPLE_VERSION;
}
