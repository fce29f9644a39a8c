// SPDX-License-Identifier: Apache-2.0
// encode/prefill.cu for calls with a key_metric. Rule 5a it leaves to encode/flip_keys.cu, but for pivots:
// one warp of a team codes a page's, so keys and values are coded in turns, that the others have something to
// do.
#include <numeric>

#include "kernels/cuda/encode/entry.h"
#include "kernels/cuda/encode/prefill_page.cuh"
#include "kernels/cuda/encode/prefill_pivot.cuh"
#include "kernels/cuda/encode/prefill_tasks.cuh"
#include "kernels/cuda/launch.h"

namespace turboquant::kernels::cuda {
namespace {

// Whose rows a warp fetches: values of a unit, or keys of a task.
struct Item {
  int unit, task;  // or kNoTask
};
struct TurnsShared : PrefillShared {
  TeamPivot pivots[kTeams];
  alignas(16) std::int8_t directions[kTasks][kPrefillDim];  // of the head of a task that is its head's first
  std::uint8_t first_of_head[kTasks];                       // that task
  std::uint32_t heads[kTasks / 32];                         // a bit for each such task
  struct {
    int task, unit;  // at hand, or kNoTask
    Item next, after;
  } plans[kPrefillWarps];  // each warp's own

  __device__ volatile auto& plan() { return plans[this_thread() / 32]; }
  __device__ const std::int8_t* direction() { return directions[first_of_head[turn().task]]; }
};
static_assert(sizeof(TurnsShared) <= 227 * 1024);

__device__ inline void fetch(const EncodeCall& call, TurnsShared& shared, int unit, int task) {
  if (is_for_warp(unit != kNoTask)) fetch_values(call, shared, unit);
  else if (is_for_warp(task != kNoTask)) fetch_keys(call, shared, task);
}

// What comes before the values of a turn: the keys' rotation, their centre, and who chooses it. Then the next
// item is fetched.
template <DType kType>
__device__ inline void begin_keys(const EncodeCall& call, TurnsShared& shared) {
  const Team team = this_team();
  PrefillKeys& keys = shared.keys[team.number];
  TeamPivot& pivot = shared.pivots[team.number];
  float largest;
  Rotated scaled{1.0f, true};
  {
    SideVector y;
    wait_for_fetch();
    rotate<kType>(shared, y);
    keep_row(team, y, keys);
    largest = side_largest(y);
    if (!__all_sync(~0u, is_unscaled(largest))) {
      SideVector again;
      scaled = rotate_scaled<kType>(shared.input(), again);
      keep_row(team, again, keys);
      largest = side_largest(again);
    }
  }
  __syncwarp();
  fetch(call, shared, shared.plan().next.unit, shared.plan().next.task);
  if (this_side() == 0) {
    pivot.largest[team.token] = largest;
    pivot.factors[team.token] = scaled.finite ? scaled.factor : 0.0f;
  }
  const PrefillTask& task = shared.task();
  Stored stored;
  if (is_for_warp(task.has_own_mean)) {
    const bool counts = scaled.finite && team.token >= task.part.begin && team.token < task.part.end;
    const Choice choice = choose_mean(call, team, counts, largest, scaled.factor, keys);
    stored = choice.stored;
    measure_along(call, team, shared.direction(), choice, choice.nearer && counts, largest, scaled.factor,
                  keys, pivot);
  } else {
    stored = other_centre(call, task, keys);
    team.group.sync();  // all are done with the page before
  }
  if (codes_pivots(team)) {
    const int lane = this_thread() & 31;
    reinterpret_cast<std::uint32_t*>(pivot.steps)[lane] = stored.steps;
    if (lane == 0) pivot.step = stored.step;
  }
  if (!moves_centre(task)) return;
  team.group.sync();
  if (codes_pivots(team)) code_pivot(call, task.head, shared.direction(), keys, pivot);
}

// What comes after them: the keys about their centre.
__device__ inline void finish_keys(const EncodeCall& call, TurnsShared& shared) {
  const Team team = this_team();
  PrefillKeys& keys = shared.keys[team.number];
  const TeamPivot& pivot = shared.pivots[team.number];
  WarpCentre& centre = keys.centres[team.warp];
  const PageFormat& format = call.args.pages.format;
  const int lane = this_thread() & 31;
  team.group.sync();
  const Stored stored{reinterpret_cast<const std::uint32_t*>(pivot.steps)[lane], pivot.step};
  float n[4];
  find_steps(stored, n);
  const Measure measure = take_centre(stored, n, call.centre_scale, centre);
  float factor = pivot.factors[team.token];
  const bool finite = factor != 0.0f;
  factor = finite ? factor : 1.0f;
  const bool centred = is_nearer(pivot.largest[team.token], factor, measure, team, keys) && finite;
  find_pairs(n, measure, centre);
  if (is_for_warp(shared.task().part.opens && team.warp == team.number % kTeamWarps)) {
    const std::uint32_t mark = moves_centre(shared.task()) ? pivot_mark(pivot.slot) : 0;
    store_centre({stored.steps, stored.step | mark}, page_of(shared.task()) + centre_area_at(format));
  }
  SideVector y;
  take_row(team, keys, y);
  subtract_centre(y, centred, factor, measure, centre, shared.zeros);
  SideCodes codes =
      code_side<KeyOrder, false>(y, side_largest(y), {factor, finite}, call.rotation_scale, call.key_coder);
  if (!centred && codes.scale != kNanScale) codes.scale |= kReferenceIsZero;
  const PrefillTask& task = shared.task();
  if (moves_centre(task)) take_pivot(team, pivot, codes);
  std::uint8_t* page = page_of(task);
  store_side_scale(task, team.token, codes.scale, page + key_scales_at(format));
  store_key_codes(codes, team.token, task.part, format.k_bits, page);
}

// In a list of `size` each cycle-th task is of the same head. Which one is the at-th, if a head's come one
// after another?
__device__ inline int in_order_of_heads(int cycle, int size, int at) {
  if (cycle == 1 || at >= size) return at;
  const int least = size / cycle, longer = size % cycle, of_longer = longer * (least + 1);
  if (at < of_longer) return at % (least + 1) * cycle + at / (least + 1);
  return (at - of_longer) % least * cycle + longer + (at - of_longer) / least;
}
// The first threads of a block: which tasks of the list need a direction of their own.
__device__ inline void link_heads(TurnsShared& shared, int at) {
  const PrefillTask& task = shared.tasks[at];
  int first = 0;
  while (first < at && !(shared.tasks[first].exists && shared.tasks[first].head == task.head)) ++first;
  shared.first_of_head[at] = static_cast<std::uint8_t>(first);
  const std::uint32_t firsts = __ballot_sync(~0u, task.exists && first == at);
  if (at % 32 == 0) shared.heads[at / 32] = firsts;
}
// A team: its share of the list's heads' directions.
__device__ inline void find_directions(const EncodeCall& call, TurnsShared& shared) {
  const Team team = this_team();
  auto& scratch = *reinterpret_cast<DirectionScratch<kPrefillDim>*>(shared.keys[team.number].rows);
  int count = 0;
  for (int at = 0; at < kTasks; ++at) {
    if (is_for_warp((shared.heads[at / 32] >> (at % 32) & 1) == 0)) continue;
    if (is_for_warp(count++ % kTeams != team.number)) continue;
    find_direction<kPrefillDim>(
        call.args.basis.key_metric + std::int64_t{shared.tasks[at].head} * kPrefillDim * kPrefillDim,
        kPrefillDim, team.group, scratch, shared.directions[at]);
  }
}

// The warp's share of the block's list. All warps call it.
template <DType kType>
__device__ void encode_in_turns(const EncodeCall& call, TurnsShared& shared) {
  volatile auto& plan = shared.plan();
  {
    const int task = find_task(shared, 0, this_team().number);
    const int unit = is_for_warp(task != kNoTask) ? kNoTask : shared.take_values();
    fetch(call, shared, unit, task);
    plan.after.task = task;
    plan.after.unit = unit;
  }
  find_directions(call, shared);
  __syncthreads();
  for (;;) {
    __syncwarp();
    int task = plan.after.task, unit = plan.after.unit;
    if (is_for_warp(task == kNoTask && unit == kNoTask)) return;
    Item after{kNoTask, kNoTask};
    if (is_for_warp(task != kNoTask)) {
      const PrefillTask& t = shared.tasks[task];
      if (!(moves_centre(t) && codes_pivots(this_team()))) unit = shared.take_values();
      after.task = t.next;
    }
    if (is_for_warp(after.task == kNoTask)) after.unit = shared.take_values();
    __syncwarp();
    plan.task = task;
    plan.unit = unit;
    plan.after.task = after.task;
    plan.after.unit = after.unit;
    plan.next.task = unit != kNoTask ? kNoTask : after.task;
    plan.next.unit = unit != kNoTask ? unit : after.unit;
    __syncwarp();
    if (is_for_warp(task != kNoTask)) {
      shared.begin_turn(task, 0, 0);
      begin_keys<kType>(call, shared);
    }
    unit = plan.unit;
    if (is_for_warp(unit != kNoTask)) {
      shared.begin_turn(unit / kTeamWarps, unit % kTeamWarps, 0);
      encode_values<kType>(call, shared,
                           [&] { fetch(call, shared, shared.plan().after.unit, shared.plan().after.task); });
    }
    task = plan.task;
    if (is_for_warp(task != kNoTask)) {
      shared.begin_turn(task, 0, 0);
      finish_keys(call, shared);
    }
  }
}

// Blocks take each gridDim.x-th task. Lists are in order of heads as of a `cycle`.
template <DType kType>
__global__ void __launch_bounds__(kPrefillThreads, 1)
    encode_turns(const __grid_constant__ EncodeCall call, const std::int64_t slots, const int cycle) {
  extern __shared__ __align__(128) unsigned char bytes[];
  auto& shared = *reinterpret_cast<TurnsShared*>(bytes);
  const std::int64_t count = slots * call.args.pages.kv_heads;
  const int thread = static_cast<int>(threadIdx.x);

  if (thread < kSidePairs) shared.zeros[thread] = 0;
  if (thread < kPageTokens)
    shared.value_tokens[thread / kWarpVectors][thread % kWarpVectors] = static_cast<std::uint8_t>(
        value_token(call.args.pages.format.v_bits, thread / kWarpVectors, thread % kWarpVectors));
  wait_for_previous_kernel();
  let_next_kernel_start();

  for (std::int64_t first = blockIdx.x; first < count; first += std::int64_t{kTasks} * gridDim.x) {
    if (thread < kTasks) {
      const std::int64_t left = (count - first + gridDim.x - 1) / gridDim.x;
      const int size = left < kTasks ? static_cast<int>(left) : kTasks;
      const std::int64_t at = in_order_of_heads(cycle, size, thread);
      make_task(call, first + at * gridDim.x, count, shared.tasks[thread], shared.tasks[kTasks + thread]);
      note_leading(shared, thread);
    }
    __syncthreads();
    if (thread < kTasks) link_task(shared, thread);
    if (thread < kTasks) link_heads(shared, thread);
    if (thread == 0) shared.value_units = 0;
    __syncthreads();
    encode_in_turns<kType>(call, shared);
    __syncthreads();
  }
}

}  // namespace

bool prefill_turns_serve(const DeviceLimits& limits) {
  return static_cast<std::size_t>(limits.shared_bytes) >= sizeof(TurnsShared);
}

Status launch_prefill_turns(const EncodeCall& call, std::int64_t slots, unsigned blocks,
                            const Context& context) {
  const Launch how{"encode", dim3(blocks), dim3(kPrefillThreads), sizeof(TurnsShared), true};
  // Tasks are head first, so each so many-th one of a block is of the same head. A list of many of a head is
  // put in order: the head's metric then stays in the L1.
  const int heads = call.args.pages.kv_heads, cycle = heads / std::gcd(heads, static_cast<int>(blocks));
  const bool is_long = slots * heads >= std::int64_t{kTasks} / 2 * blocks;
  return launch(
      how, context,
      call.args.keys.dtype == DType::kBF16 ? &encode_turns<DType::kBF16> : &encode_turns<DType::kF16>, call,
      slots, is_long ? cycle : 1);
}

}  // namespace turboquant::kernels::cuda
