// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "kernels/cuda/encode/prefill.cuh"

// A block's list of pages, and which team does whose keys.
namespace turboquant::kernels::cuda {

// Page and rows of a part of a task's head.
__device__ inline void find_rows(const EncodeCall& call, PrefillTask& task) {
  const EncodeArgs& a = call.args;
  const std::int64_t first_row = task.part.row - task.part.begin;
  task.page = page_of(a, task.part, task.part.page, task.head);
  task.keys = static_cast<const std::uint16_t*>(a.keys.data) + row_at(a.keys, first_row, task.head);
  task.values = static_cast<const std::uint16_t*>(a.values.data) + row_at(a.values, first_row, task.head);
  task.is_whole = task.part.opens && task.part.tokens() == kPageTokens;
  task.has_own_mean = task.part.opens && task.part.has_own_centre();
}
// Task `at` = (slot, head), head first, by one thread.
__device__ inline void make_task(const EncodeCall& call, std::int64_t at, std::int64_t count,
                                 PrefillTask& task, PrefillTask& follower) {
  const EncodeArgs& a = call.args;
  task.exists = at < count && find_slot_alone(call, at / a.pages.kv_heads, task.part);
  if (!task.exists) return;
  const Part& part = task.part;
  task.head = static_cast<int>(at % a.pages.kv_heads);
  find_rows(call, task);
  task.leads = !(part.follows() && part.previous_in_call);
  task.followed =
      find_part(a.sequences, part.sequence, part.page + 1, follower.part) && follower.part.follows();
  if (!task.followed) return;
  follower.head = task.head;
  find_rows(call, follower);
  follower.followed = false;  // it is not full
}

// The first threads of a block, when they have made their tasks.
__device__ inline void note_leading(PrefillShared& shared, int at) {
  const std::uint32_t leading = __ballot_sync(~0u, shared.tasks[at].exists && shared.tasks[at].leads);
  if (at % 32 == 0) shared.leading[at / 32] = leading;
}
// The n-th one, from 0, of the tasks from `at` on that lead: every kTeams-th of the block's is a team's, for
// keys.
__device__ inline int find_task(const PrefillShared& shared, int at, int n) {
  static_assert(kTasks == 64);
  std::uint64_t left = (std::uint64_t{shared.leading[1]} << 32 | shared.leading[0]) >> at;
  for (; n > 0; --n) left &= left - 1;
  return left != 0 ? at + __ffsll(static_cast<long long>(left)) - 1 : kNoTask;
}
__device__ inline void link_task(PrefillShared& shared, int at) {
  PrefillTask& task = shared.tasks[at];
  const int next = at + 1 < kTasks ? find_task(shared, at + 1, kTeams - 1) : kNoTask;
  task.next = task.exists && task.followed ? kTasks + at : next;
  shared.tasks[kTasks + at].next = next;
}

}  // namespace turboquant::kernels::cuda
