// SPDX-License-Identifier: Apache-2.0
#include <algorithm>
#include <condition_variable>
#include <cstdlib>
#include <mutex>
#include <thread>
#include <vector>

#include "turboquant/device.h"

namespace turboquant {
namespace {

// Workers sleep between loops; the calling thread takes tasks too. One loop at a time:
// a second caller waits for the first.
class ThreadPool final : public Executor {
 public:
  explicit ThreadPool(int threads) {
    for (int i = 1; i < threads; ++i) workers_.emplace_back([this] { work(); });
  }

  ~ThreadPool() override {
    {
      std::lock_guard lock(mutex_);
      stopping_ = true;
    }
    wake_.notify_all();
    for (std::thread& worker : workers_) worker.join();
  }

  int threads() const override { return static_cast<int>(workers_.size()) + 1; }

  void run(std::size_t tasks, Task task, void* context) override {
    if (tasks == 0) return;
    if (tasks == 1 || workers_.empty()) {
      for (std::size_t i = 0; i < tasks; ++i) task(context, i);
      return;
    }
    std::lock_guard one_loop(loop_);
    std::unique_lock lock(mutex_);
    task_ = task;
    context_ = context;
    next_ = 0;
    tasks_ = tasks;
    unfinished_ = tasks;
    lock.unlock();
    wake_.notify_all();
    take_tasks();
    lock.lock();
    done_.wait(lock, [this] { return unfinished_ == 0; });
  }

 private:
  void work() {
    std::unique_lock lock(mutex_);
    for (;;) {
      wake_.wait(lock, [this] { return stopping_ || next_ < tasks_; });
      if (stopping_) return;
      lock.unlock();
      take_tasks();
      lock.lock();
    }
  }

  void take_tasks() {
    std::unique_lock lock(mutex_);
    while (next_ < tasks_) {
      const std::size_t index = next_++;
      const Task task = task_;
      void* const context = context_;
      lock.unlock();
      task(context, index);
      lock.lock();
      if (--unfinished_ == 0) done_.notify_one();
    }
  }

  std::vector<std::thread> workers_;
  std::mutex loop_;   // held by the one caller whose loop runs
  std::mutex mutex_;  // guards everything below
  std::condition_variable wake_, done_;
  Task task_ = nullptr;
  void* context_ = nullptr;
  std::size_t next_ = 0, tasks_ = 0, unfinished_ = 0;
  bool stopping_ = false;
};

int thread_count() {
  if (const char* forced = std::getenv("TQ_THREADS")) return std::clamp(std::atoi(forced), 1, 1024);
  return static_cast<int>(std::max(1u, std::thread::hardware_concurrency()));
}

}  // namespace

Executor& default_executor() {
  static ThreadPool pool(thread_count());
  return pool;
}

}  // namespace turboquant
