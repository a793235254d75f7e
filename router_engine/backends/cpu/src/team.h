// The threads of one step: they share the tasks of a phase, and go on when all are done.
//
// A phase is over once its tasks are, whoever did them: a thread that the system has taken away
// between two tasks holds up nobody, and finds its way through the phases that it missed when it
// comes back. So on a busy machine a step waits for what is being computed, never for a thread.
#pragma once

#include "tiles.h"

namespace mix::MIX_ISA {

inline void pause() {
#if defined(__x86_64__)
  _mm_pause();
#elif defined(__aarch64__)
  asm volatile("yield");
#endif
}

// What the threads of a step have in common.
struct TeamState {
  explicit TeamState(int threads) : threads(threads) {}

  const int threads;
  alignas(64) std::atomic<uint64_t> ticket{0};  // the phase, then the next task of it
  alignas(64) std::atomic<int> done{0};         // tasks of the phase
  alignas(64) std::atomic<uint32_t> phase{0};   // what sleepers look at
};

// One thread's part. Every thread calls `share` with the same tasks in the same order.
class Team {
 public:
  explicit Team(TeamState& state) : state_(state) {}

  int threads() const { return state_.threads; }

  // Calls work(task) for 0 <= task < tasks, each once, on whichever thread is free.
  // Returns once all are done.
  template <class Work>
  void share(int tasks, const Work& work) {
    share(tasks, work, [] {});
  }

  // The same; whichever thread is last calls `then` before any returns, which costs no other barrier.
  template <class Work, class Then>
  void share(int tasks, const Work& work, const Then& then) {
    const uint32_t mine = phase_++;
    const int all = std::max(tasks, 1);
    int finished = 0;
    for (int task; (task = claim(mine, all)) >= 0; finished++)
      if (task < tasks) work(task);
    if (finished > 0 && state_.done.fetch_add(finished, std::memory_order_acq_rel) + finished == all) {
      then();
      state_.done.store(0, std::memory_order_relaxed);
      state_.ticket.store(uint64_t(mine + 1) << 32, std::memory_order_release);
      wake(mine + 1);
    } else {
      wait(mine);
    }
  }

 private:
  // Pauses before a thread sleeps. Spinning that paid may last longer next time; spinning in vain,
  // for a thread that has no core, halves it.
  static constexpr int LEAST_SPINS = 32;
  static constexpr int MOST_SPINS = 4000;

  // The next task of a phase, or -1: none is left, or the phase is over.
  int claim(uint32_t mine, int tasks) {
    uint64_t ticket = state_.ticket.load(std::memory_order_acquire);
    while (uint32_t(ticket >> 32) == mine && int(uint32_t(ticket)) < tasks)
      if (state_.ticket.compare_exchange_weak(ticket, ticket + 1, std::memory_order_acq_rel))
        return int(uint32_t(ticket));
    return -1;
  }

  bool is_over(uint32_t mine) const {
    return uint32_t(state_.ticket.load(std::memory_order_acquire) >> 32) != mine;
  }

  // The word that sleepers look at never goes back, though a thread may come late with its turn.
  void wake(uint32_t phase) {
    uint32_t last = state_.phase.load(std::memory_order_relaxed);
    while (int32_t(phase - last) > 0)
      if (state_.phase.compare_exchange_weak(last, phase, std::memory_order_acq_rel))
        return state_.phase.notify_all();
  }

  void wait(uint32_t mine) {
    static thread_local int budget = MOST_SPINS;
    for (int spins = 0; spins < budget; spins++) {
      if (is_over(mine)) {
        budget = std::min(MOST_SPINS, budget + budget / 4 + 1);
        return;
      }
      pause();
    }
    budget = std::max(LEAST_SPINS, budget / 2);
    for (;;) {
      const uint32_t seen = state_.phase.load(std::memory_order_acquire);
      if (is_over(mine)) return;
      state_.phase.wait(seen, std::memory_order_acquire);
    }
  }

  TeamState& state_;
  uint32_t phase_ = 0;
};

// Runs work(team) on a team of up to `threads`.
template <class Work>
void with_team(int threads, const Work& work) {
  TeamState state(threads);
  Pool::shared().run(threads, [&] {
    Team team(state);
    work(team);
    Tiles::release();
  });
}

}  // namespace mix::MIX_ISA
