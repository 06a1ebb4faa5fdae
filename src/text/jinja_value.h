// Values of the template interpreter, with the meaning that Python gives them. Containers never change after
// they were built (the sandbox that templates are written for forbids it); only namespaces do.
#pragma once

#include <array>
#include <cstdint>
#include <deque>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <unordered_map>
#include <utility>
#include <vector>

#include "text/jinja_text.h"

namespace deepinfer::jinja {

// Thrown inside the interpreter and caught in chat_template.cpp: an expression tree has too many places where
// it can fail to pass a Result through each. `raised` says that the template itself called raise_exception.
struct Failure {
  std::string message;
  bool raised = false;
  bool budget = false;  // a limit, which no lazy evaluation may put off
};

__extension__ using Int = __int128;  // room for every integer of a JSON request

enum class Kind : uint8_t {
  kUndefined,
  kNone,
  kBool,
  kInt,
  kFloat,
  kString,
  kList,
  kTuple,
  kDict,
  kView,      // dict.keys(), values(), items()
  kRange,     //
  kIterator,  // what filters like map give: used up by reading
  kNamespace,
  kFunction,  // a global: detail is its Builtin
  kMethod,    // a method with its object
  kMacro,
  kLoop,
};

// Why a value is undefined: the error message of whoever uses it.
enum class Missing : uint8_t { kName, kAttribute, kElement, kUnsafe, kHint };

class Heap;

struct Object {
  virtual ~Object() = default;
};

struct Value {
  Kind kind = Kind::kUndefined;
  bool tainted = false;  // a scalar or container out of the request: printing it gives untrusted bytes
  bool markup = false;   // a string marked safe: adding to it escapes
  uint8_t detail = 0;    // Missing, Builtin, or 1 for a group of groupby
  union {
    Int i = 0;
    bool b;
    double f;
    Object* object;  // owned by the Heap
  };
  TextPtr text;  // kString; the name or hint of kUndefined

  static Value none() { return make(Kind::kNone); }
  static Value boolean(bool value);
  static Value integer(Int value);
  static Value real(double value);
  static Value string(TextPtr text);
  static Value of(Kind kind, Object* object);
  static Value undefined(Missing why, TextPtr what, Kind owner = Kind::kUndefined);
  static Value hint(std::string_view message);

  bool is_undefined() const { return kind == Kind::kUndefined; }
  bool is_none() const { return kind == Kind::kNone; }
  bool is_string() const { return kind == Kind::kString; }
  bool is_number() const { return kind == Kind::kBool || kind == Kind::kInt || kind == Kind::kFloat; }
  bool is_integral() const { return kind == Kind::kBool || kind == Kind::kInt; }
  Int integral() const { return kind == Kind::kBool ? Int{b} : i; }  // of kBool or kInt
  double number() const { return kind == Kind::kFloat ? f : static_cast<double>(integral()); }
  const std::string& bytes() const { return text->bytes; }  // of kString

 private:
  static Value make(Kind kind) {
    Value v;
    v.kind = kind;
    return v;
  }
};

struct ListObject : Object {  // kList and kTuple
  std::vector<Value> items;
};

struct DictObject : Object {
  std::vector<std::pair<Value, Value>> items;  // in order of insertion

  const Value* find(Heap& heap, const Value& key) const;
  const Value* find(std::string_view key) const;
  void set(Heap& heap, Value key, Value value);

 private:
  std::optional<size_t> position(Heap& heap, const Value& key) const;
  std::optional<size_t> position(std::string_view key) const;
  std::unordered_map<std::string_view, size_t> index_;  // string keys, once there are many
};

struct ViewObject : Object {
  enum Part : uint8_t { kKeys, kValues, kItems } part = kKeys;
  const DictObject* dict = nullptr;
};

struct RangeObject : Object {
  Int start = 0, stop = 0, step = 1;
  size_t size() const;
  Int at(size_t index) const { return start + step * static_cast<Int>(index); }
};

struct IteratorObject : Object {
  std::vector<Value> items;
  size_t at = 0;
  std::string failure;  // what Python would fail with behind the last item, or empty
  const char* type = "generator";
};

struct NamespaceObject : Object {
  DictObject attributes;
};

struct Limits {
  uint64_t steps = 20'000'000;  // nodes evaluated, items walked, and one more for every 64 bytes copied
  size_t live_bytes = size_t{512} << 20;  // strings and containers that exist at the same time
  size_t output_bytes = size_t{64} << 20;
  int depth = 1000;  // evaluations inside each other: macros that call themselves
};

// Owns all objects of one rendering and counts against its limits. One thread.
class Heap {
 public:
  explicit Heap(const Limits& limits) : limits_(limits), steps_left_(limits.steps) {}
  Heap(const Heap&) = delete;

  const Limits& limits() const { return limits_; }
  void step(uint64_t count = 1);
  void copy_cost(size_t bytes) { step(1 + bytes / 64); }

  Value text(Text&& text);
  Value text(std::string_view bytes, bool untrusted);
  Value text(TextBuilder& builder) { return text(builder.take()); }
  Value slice(const Value& string, size_t begin, size_t end);  // bytes

  Value list(std::vector<Value> items, Kind kind = Kind::kList);
  Value iterator(std::vector<Value> items, const char* type = "generator");
  DictObject* dict();

  template <class T, class... Args>
  T* make(Args&&... args) {
    charge(sizeof(T));
    auto owned = std::make_unique<T>(std::forward<Args>(args)...);
    T* out = owned.get();
    objects_.push_back(std::move(owned));
    return out;
  }
  void charge(size_t bytes);  // of containers, until the end of the rendering

 private:
  Limits limits_;
  uint64_t steps_left_;
  size_t live_ = 0;
  std::deque<std::unique_ptr<Object>> objects_;
};

inline ListObject& as_list(const Value& v) {
  return static_cast<ListObject&>(*v.object);
}
inline DictObject& as_dict(const Value& v) {
  return static_cast<DictObject&>(*v.object);
}

const char* type_name(const Value& v);  // Python's: "str", "NoneType", "dict"
std::string undefined_message(const Value& v);
[[noreturn]] void fail(std::string message);
[[noreturn]] void fail_budget(std::string message);
[[noreturn]] void fail_undefined(const Value& v);

}  // namespace deepinfer::jinja
