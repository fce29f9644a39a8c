// SPDX-License-Identifier: Apache-2.0
// Every public verb: check, find the machine's kernel, call it.
#include <string>

#include "attention/checks.h"
#include "kernels/cuda_table.h"
#include "kernels/kernels.h"
#include "kernels/own_tokens.h"
#include "turboquant/attention.h"

namespace turboquant {
namespace {

Executor& executor_of(const Context& context) {
  return context.executor != nullptr ? *context.executor : default_executor();
}

Result<const kernels::KernelTable*> cpu_table() {
  const kernels::KernelTable* table = kernels::active();
  if (table != nullptr) return table;
  std::string names;
  for (const kernels::KernelTable* known : kernels::all())
    if (known->runs_here()) names += (names.empty() ? "" : ", ") + std::string(known->name);
  return unsupported("TQ_KERNELS names kernels that are unknown or cannot run here; this machine has: " +
                     names);
}

Result<const kernels::CudaTable*> cuda_table() {
  if (const kernels::CudaTable* table = kernels::cuda_table(); table != nullptr) return table;
  return unsupported(
      "this build has no CUDA kernels; build with -DTQ_CUDA=ON where nvcc is, or move the tensors to the "
      "CPU");
}

// Calls without a row launch nothing: their pointers may be null.
bool empty(const RotateArgs& a) {
  return a.heads == 0 || a.tokens == 0;
}
bool empty(const DecodeArgs& a) {
  return a.sequences.count == 0 || a.max_tokens == 0;
}
template <class Args>  // encode, attend
bool empty(const Args& a) {
  return a.sequences.count == 0 || a.sequences.tokens == 0;
}

// check, then kernel(args): the whole of a verb.
template <class Args>
Status run(const Args& args, const Context& context,
           void (*kernels::KernelTable::*verb)(const Args&, Executor&),
           Status (*kernels::CudaTable::*cuda_verb)(const Args&, const Context&)) {
  if (context.device.type == DeviceType::kCuda) {
    const auto table = cuda_table();
    if (!table.ok()) return table.error();
    if (Status s = attention::check(args, DeviceType::kCuda); !s.ok() || empty(args)) return s;
    return (table.value()->*cuda_verb)(args, context);
  }
  const auto table = cpu_table();
  if (!table.ok()) return table.error();
  if (Status s = attention::check(args, DeviceType::kCpu); !s.ok()) return s;
  (table.value()->*verb)(args, executor_of(context));
  return {};
}

Status check_attend(const AttendArgs& args, const Context& context) {
  const DeviceType device = context.device.type;
  if (Status s = supports("attend", args.pages.format, device); !s.ok()) return s;
  const Sequences& s = args.sequences;
  const std::size_t needed = attend_workspace_bytes(args.pages.format, args.pages.kv_heads, args.q_heads,
                                                    s.count, attention::tokens_of(s, device), context);
  return attention::check(args, needed, device);
}

}  // namespace

Status rotate(const RotateArgs& args, const Context& context) {
  return run(args, context, &kernels::KernelTable::rotate, &kernels::CudaTable::rotate);
}

Status encode(const EncodeArgs& args, const Context& context) {
  return run(args, context, &kernels::KernelTable::encode, &kernels::CudaTable::encode);
}

Status decode(const DecodeArgs& args, const Context& context) {
  return run(args, context, &kernels::KernelTable::decode, &kernels::CudaTable::decode);
}

Status attend(const AttendArgs& args, const Context& context) {
  if (Status s = check_attend(args, context); !s.ok()) return s;
  if (context.device.type == DeviceType::kCpu) cpu_table().value()->attend(args, executor_of(context));
  else if (!empty(args)) return cuda_table().value()->attend(args, context);
  return {};
}

Status attend_encode(const AttendArgs& args, const Context& context) {
  const DeviceType device = context.device.type;
  if (Status s = check_attend(args, context); !s.ok()) return s;
  const EncodeArgs own = kernels::own_tokens(args);
  if (Status s = attention::check(own, device); !s.ok()) return s;
  if (Status s = attention::check_even(args.sequences, device); !s.ok()) return s;
  if (device == DeviceType::kCuda)
    return empty(args) ? Status{} : cuda_table().value()->attend_encode(args, context);
  cpu_table().value()->attend(args, executor_of(context));
  cpu_table().value()->encode(own, executor_of(context));
  return {};
}

std::size_t attend_workspace_bytes(const PageFormat& format, int kv_heads, int q_heads, int sequences,
                                   std::int64_t tokens, const Context& context) {
  if (!supports("attend", format, context.device.type).ok()) return 0;
  if (kv_heads < 1 || q_heads < kv_heads || sequences < 1 || tokens < 1) return 0;
  if (context.device.type == DeviceType::kCuda)
    return cuda_table().value()->attend_workspace_bytes(format, kv_heads, q_heads, sequences, tokens,
                                                        context);
  return cpu_table().value()->attend_workspace_bytes(format, kv_heads, q_heads, sequences, tokens,
                                                     executor_of(context).threads());
}

Status supports(std::string_view verb, const PageFormat& format, DeviceType device) {
  bool known = false;
  for (const std::string_view name : {"rotate", "balance", "key_metric", "encode", "decode", "attend"})
    known = known || verb == name;
  if (!known)
    return invalid("verb \"" + std::string(verb) +
                   "\" is unknown; use rotate, balance, key_metric, encode, decode or attend");
  if (Status s = check(format); !s.ok()) return s;
  if (device == DeviceType::kCuda) {
    const auto table = cuda_table();
    return table.ok() ? Status{} : Status{table.error()};
  }
  const auto table = cpu_table();
  return table.ok() ? Status{} : Status{table.error()};
}

}  // namespace turboquant
