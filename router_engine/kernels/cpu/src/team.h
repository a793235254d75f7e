// The threads of one step: they share the tasks of a phase, then wait for each other.
//
// One OpenMP region spans the whole step, so its own barriers, which sleep under
// OMP_WAIT_POLICY=PASSIVE and burn a core under ACTIVE, are met once a step and not hundreds of
// times. Ours spin for some microseconds and then give the core away.
#pragma once

#include <sched.h>

#include <atomic>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace mix {

class Team {
 public:
  // Every thread says first how many there are: the system may have granted fewer than asked for.
  void enter(int threads) { threads_.store(threads, std::memory_order_relaxed); }

  int threads() const { return threads_.load(std::memory_order_relaxed); }

  // Calls work(task) for 0 <= task < tasks, each once, on whichever thread is free.
  // Returns on every thread once all are done. Every thread must call it.
  template <class Work>
  void share(int tasks, const Work& work) {
    share(tasks, work, [] {});
  }

  // The same; whichever thread is last calls `then` before any returns, which costs no meeting.
  template <class Work, class Then>
  void share(int tasks, const Work& work, const Then& then) {
    for (int task = next_.fetch_add(1); task < tasks; task = next_.fetch_add(1)) work(task);
    wait(then);
  }

 private:
  static constexpr int SPINS = 4000;

  template <class Then>
  void wait(const Then& then) {
    const unsigned phase = phase_.load(std::memory_order_acquire);
    if (arrived_.fetch_add(1) == threads() - 1) {
      then();
      arrived_.store(0);
      next_.store(0);
      phase_.store(phase + 1, std::memory_order_release);
      return;
    }
    for (int spins = 0; phase_.load(std::memory_order_acquire) == phase; spins++) {
      if (spins < SPINS) {
#if defined(__x86_64__)
        _mm_pause();
#endif
      } else {
        sched_yield();
      }
    }
  }

  std::atomic<int> threads_{1};
  alignas(64) std::atomic<int> next_{0};
  alignas(64) std::atomic<int> arrived_{0};
  alignas(64) std::atomic<unsigned> phase_{0};
};

}  // namespace mix
