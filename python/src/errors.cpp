#include "errors.h"

#include <nanobind/nanobind.h>
#include <nanobind/stl/string.h>

namespace nb = nanobind;

namespace deepinfer::python {

const char* code_name(ErrorCode code) {
  static constexpr const char* kNames[] = {"invalid_argument", "context_length", "unsupported",   "not_found",
                                           "queue_full",       "unavailable",    "queue_timeout", "timeout",
                                           "cancelled",        "config",         "model",         "memory",
                                           "address_in_use",   "internal"};
  return kNames[static_cast<size_t>(code)];
}

void raise(const Error& error) {
  nb::object make = nb::module_::import_("deepinfer.errors").attr("from_core");
  nb::object made = make(code_name(error.code), error.message, error.param);
  PyErr_SetObject(reinterpret_cast<PyObject*>(Py_TYPE(made.ptr())), made.ptr());
  throw nb::python_error();
}

}  // namespace deepinfer::python
