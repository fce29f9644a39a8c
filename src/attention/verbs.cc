// SPDX-License-Identifier: Apache-2.0
// Every public verb: check, find the machine's kernel, call it.
#include <string>

#include "attention/checks.h"
#include "kernels/kernels.h"
#include "turboquant/attention.h"

namespace turboquant {
namespace {

Executor& executor_of(const Context& context) {
  return context.executor != nullptr ? *context.executor : default_executor();
}

Result<const kernels::KernelTable*> table_for(DeviceType device) {
  if (device == DeviceType::kCuda)
    return unsupported("this build has no CUDA kernels; move the tensors to the CPU");
  const kernels::KernelTable* table = kernels::active();
  if (table != nullptr) return table;
  std::string names;
  for (const kernels::KernelTable* known : kernels::all())
    if (known->runs_here()) names += (names.empty() ? "" : ", ") + std::string(known->name);
  return unsupported("TQ_KERNELS names kernels that are unknown or cannot run here; this machine has: " +
                     names);
}

// check, then kernel(args): the whole of a verb.
template <class Args>
Status run(const Args& args, const Context& context,
           void (*kernels::KernelTable::*verb)(const Args&, Executor&)) {
  const auto table = table_for(context.device.type);
  if (!table.ok()) return table.error();
  if (Status s = attention::check(args); !s.ok()) return s;
  (table.value()->*verb)(args, executor_of(context));
  return {};
}

}  // namespace

Status rotate(const RotateArgs& args, const Context& context) {
  return run(args, context, &kernels::KernelTable::rotate);
}

Status encode(const EncodeArgs& args, const Context& context) {
  return run(args, context, &kernels::KernelTable::encode);
}

Status decode(const DecodeArgs& args, const Context& context) {
  return run(args, context, &kernels::KernelTable::decode);
}

Status attend(const AttendArgs& args, const Context& context) {
  const auto table = table_for(context.device.type);
  if (!table.ok()) return table.error();
  const Sequences& s = args.sequences;
  const std::int64_t tokens = s.count > 0 && s.token_starts != nullptr ? s.token_starts[s.count] : 0;
  const std::size_t needed =
      attend_workspace_bytes(args.pages.format, args.pages.kv_heads, args.q_heads, s.count, tokens, context);
  if (Status checked = attention::check(args, needed); !checked.ok()) return checked;
  table.value()->attend(args, executor_of(context));
  return {};
}

std::size_t attend_workspace_bytes(const PageFormat& format, int kv_heads, int q_heads, int sequences,
                                   std::int64_t tokens, const Context& context) {
  const auto table = table_for(context.device.type);
  if (!table.ok() || kv_heads < 1 || q_heads < kv_heads || sequences < 1 || tokens < 1) return 0;
  return table.value()->attend_workspace_bytes(format, kv_heads, q_heads, sequences, tokens,
                                               executor_of(context).threads());
}

Status supports(std::string_view verb, const PageFormat& format, DeviceType device) {
  bool known = false;
  for (const std::string_view name : {"rotate", "balance", "encode", "decode", "attend"})
    known = known || verb == name;
  if (!known)
    return invalid("verb \"" + std::string(verb) +
                   "\" is unknown; use rotate, balance, encode, decode or attend");
  if (Status s = check(format); !s.ok()) return s;
  const auto table = table_for(device);
  return table.ok() ? Status{} : Status{table.error()};
}

}  // namespace turboquant
