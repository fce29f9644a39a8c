// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cassert>
#include <optional>
#include <string>
#include <utility>
#include <variant>

namespace turboquant {

enum class Code {
  kInvalidArgument,  // the caller can fix it: a shape, a dtype, a range, a full pool
  kUnsupported,      // valid, but no kernel here does it
  kDevice,           // the driver or the device failed
};

// Says what was wrong, with which value, and what would be right:
// "head_dim=100 is not a multiple of 16; use 96 or 112".
struct Error {
  Code code;
  std::string message;
};

inline Error invalid(std::string message) {
  return {Code::kInvalidArgument, std::move(message)};
}
inline Error unsupported(std::string message) {
  return {Code::kUnsupported, std::move(message)};
}

// A value or an Error. C++20 has no std::expected; this is the part we use.
// The library neither throws nor prints nor aborts; the bindings throw.
template <class T>
class [[nodiscard]] Result {
 public:
  Result(T value) : state_(std::move(value)) {}
  Result(Error error) : state_(std::move(error)) {}

  bool ok() const { return state_.index() == 0; }
  T& value() {
    assert(ok());
    return *std::get_if<0>(&state_);
  }
  const T& value() const {
    assert(ok());
    return *std::get_if<0>(&state_);
  }
  const Error& error() const {
    assert(!ok());
    return *std::get_if<1>(&state_);
  }

 private:
  std::variant<T, Error> state_;
};

// Success, or an Error: what a verb that writes through pointers returns.
template <>
class [[nodiscard]] Result<void> {
 public:
  Result() = default;
  Result(Error error) : error_(std::move(error)) {}

  bool ok() const { return !error_.has_value(); }
  const Error& error() const {
    assert(!ok());
    return *error_;
  }

 private:
  std::optional<Error> error_;
};
using Status = Result<void>;

}  // namespace turboquant
