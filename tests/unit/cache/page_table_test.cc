// SPDX-License-Identifier: Apache-2.0
#include "cache/page_table.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <map>
#include <vector>

#include "core/random.h"

namespace turboquant::cache {
namespace {

using Write = PageTable::Write;
using Change = PageTable::Change;

std::vector<std::int32_t> pages_of(const PageTable& table, int sequence) {
  const auto pages = table.pages_of(sequence);
  return {pages.begin(), pages.end()};
}

std::vector<Change> prepare(PageTable& table, const std::vector<Write>& writes) {
  EXPECT_LE(table.pages_needed(writes), table.free_pages());
  std::vector<Change> changes;
  table.prepare(writes, changes);
  return changes;
}

// Every page is free or has exactly the owners that its count says; none is lost and none is both.
void expect_consistent(const PageTable& table) {
  std::vector<int> owners(static_cast<std::size_t>(table.pages()), 0);
  int sequences = 0;
  for (int s = 0; s < table.slots(); ++s) {
    if (!table.contains(s)) continue;
    ++sequences;
    std::vector<std::int32_t> pages = pages_of(table, s);
    for (const std::int32_t page : pages) ++owners[static_cast<std::size_t>(page)];
    std::sort(pages.begin(), pages.end());
    EXPECT_EQ(std::adjacent_find(pages.begin(), pages.end()), pages.end()) << "a page twice in one sequence";
  }
  EXPECT_EQ(table.sequences(), sequences);
  std::int32_t free_pages = 0;
  std::int64_t references = 0;
  for (std::int32_t page = 0; page < table.pages(); ++page) {
    ASSERT_EQ(table.references(page), owners[static_cast<std::size_t>(page)]);
    free_pages += table.references(page) == 0;
    references += table.references(page);
  }
  EXPECT_EQ(table.free_pages(), free_pages);
  EXPECT_EQ(table.all_references(), references);
}

TEST(PageTable, FillsThePoolFromItsStart) {
  PageTable table;
  table.add_pages(3);
  const int s = table.add();
  prepare(table, {{s, 0, 64}});
  EXPECT_EQ(pages_of(table, s), (std::vector<std::int32_t>{0}));
  table.add_pages(2);
  prepare(table, {{s, 64, 64 * 5}});
  EXPECT_EQ(pages_of(table, s), (std::vector<std::int32_t>{0, 1, 2, 3, 4}));
  expect_consistent(table);
}

TEST(PageTable, TakesAPageOnlyWhenATokenNeedsIt) {
  PageTable table;
  table.add_pages(4);
  const int s = table.add();
  for (std::int64_t n = 0; n < 4 * 64; ++n) {
    EXPECT_EQ(table.pages_needed(std::vector<Write>{{s, n, n + 1}}), n % 64 == 0 ? 1 : 0);
    EXPECT_EQ(table.pages_needed(std::vector<Write>{{s, n, n}}), 0);
    prepare(table, {{s, n, n + 1}});
    EXPECT_EQ(table.pages_of(s).size(), static_cast<std::size_t>(n / 64 + 1));
  }
  expect_consistent(table);
}

TEST(PageTable, OfSeveralOwnersThatWriteAllButOneCopy) {
  PageTable table;
  table.add_pages(8);
  const int a = table.add();
  prepare(table, {{a, 0, 70}});
  const int b = table.fork(a), c = table.fork(b);
  EXPECT_EQ(table.pages() - table.free_pages(), 2);
  EXPECT_EQ(table.all_references(), 6);
  const std::vector<Write> writes{{a, 70, 71}, {b, 70, 71}, {c, 70, 71}};
  EXPECT_EQ(table.pages_needed(writes), 2);
  const std::vector<Change> changes = prepare(table, writes);
  ASSERT_EQ(changes.size(), 2u);
  EXPECT_EQ(changes[0].before, 1);
  EXPECT_EQ(changes[1].before, 1);
  EXPECT_EQ(pages_of(table, c), (std::vector<std::int32_t>{0, 1}));  // the last one kept the page
  EXPECT_EQ(table.references(0), 3);
  expect_consistent(table);
}

TEST(PageTable, ReordersAllAtOnceWithRepeatsAndSwaps) {
  PageTable table;
  table.add_pages(3);
  for (int s = 0; s < 3; ++s) prepare(table, {{table.add(), 0, 1}});
  table.assign(std::vector<int>{0, 1, 2}, std::vector<int>{1, 0, 0});
  EXPECT_EQ(pages_of(table, 0), (std::vector<std::int32_t>{1}));
  EXPECT_EQ(pages_of(table, 1), (std::vector<std::int32_t>{0}));
  EXPECT_EQ(pages_of(table, 2), (std::vector<std::int32_t>{0}));
  EXPECT_EQ(table.free_pages(), 1);  // that of 2, which nobody took
  expect_consistent(table);
}

TEST(PageTable, GivesTheNumberOfARemovedSequenceAgain) {
  PageTable table;
  EXPECT_EQ(table.add(), 0);
  EXPECT_EQ(table.add(), 1);
  table.remove(0);
  EXPECT_FALSE(table.contains(0));
  EXPECT_TRUE(table.contains(1));
  EXPECT_EQ(table.add(), 0);
  EXPECT_FALSE(table.contains(-1));
  EXPECT_FALSE(table.contains(2));
}

// The whole state as a value: what a failed append must leave as it was.
std::vector<std::int64_t> state(const PageTable& table) {
  std::vector<std::int64_t> all{table.pages(), table.free_pages(), table.all_references()};
  for (std::int32_t page = 0; page < table.pages(); ++page) all.push_back(table.references(page));
  for (int s = 0; s < table.slots(); ++s) {
    all.push_back(-1);
    if (!table.contains(s)) continue;
    for (const std::int32_t page : table.pages_of(s)) all.push_back(page);
  }
  return all;
}

TEST(PageTable, StaysConsistentUnderRandomUseAndUndoesExactly) {
  for (std::uint64_t seed = 0; seed < 20; ++seed) {
    core::SplitMix64 random(seed);
    const auto below = [&](std::int64_t n) {
      return static_cast<std::int64_t>(random.next() % static_cast<std::uint64_t>(n));
    };
    PageTable table;
    std::map<int, std::int64_t> lengths;
    const auto any = [&] {
      auto it = lengths.begin();
      std::advance(it, below(static_cast<std::int64_t>(lengths.size())));
      return it->first;
    };
    for (int step = 0; step < 400; ++step) {
      const std::int64_t what = below(10);
      if (lengths.empty() || (what == 0 && lengths.size() < 9)) {
        lengths[table.add()] = 0;
      } else if (what == 1 && lengths.size() < 9) {
        const int source = any();
        const std::int64_t length = lengths[source];
        lengths[table.fork(source)] = length;
      } else if (what == 2) {
        const int s = any();
        lengths[s] = below(lengths[s] + 1);
        table.truncate(s, static_cast<int>((lengths[s] + 63) / 64));
      } else if (what == 3 && lengths.size() > 4) {
        const int s = any();
        table.remove(s);
        lengths.erase(s);
      } else if (what == 4) {
        std::vector<int> targets, sources;
        for (const auto& entry : lengths) {
          targets.push_back(entry.first);
          sources.push_back(any());
        }
        table.assign(targets, sources);
        const std::map<int, std::int64_t> old = lengths;
        for (std::size_t i = 0; i < targets.size(); ++i) lengths[targets[i]] = old.at(sources[i]);
      } else {
        std::vector<Write> writes;
        for (const auto& [s, length] : lengths)
          if (below(2) == 0) writes.push_back({s, length, length + below(150)});
        const std::int32_t needed = table.pages_needed(writes);
        if (needed > table.free_pages()) table.add_pages(needed - table.free_pages());
        const std::vector<std::int64_t> before = state(table);
        const std::int32_t free_before = table.free_pages();
        std::vector<Change> changes = prepare(table, writes);
        EXPECT_EQ(table.free_pages(), free_before - needed);
        table.undo(changes);
        ASSERT_EQ(state(table), before);
        const std::vector<Change> again = prepare(table, writes);
        ASSERT_EQ(again.size(), changes.size());
        for (std::size_t i = 0; i < again.size(); ++i) EXPECT_EQ(again[i].after, changes[i].after);
        for (const Write& write : writes) {
          lengths[write.sequence] = write.end;
          if (write.begin == write.end) continue;
          for (std::int64_t i = write.begin / 64; i <= (write.end - 1) / 64; ++i)
            EXPECT_EQ(table.references(table.pages_of(write.sequence)[static_cast<std::size_t>(i)]), 1);
        }
      }
      expect_consistent(table);
      for (const auto& [s, length] : lengths)
        ASSERT_EQ(table.pages_of(s).size(), static_cast<std::size_t>((length + 63) / 64));
    }
    table.clear();
    EXPECT_EQ(table.free_pages(), table.pages());
    EXPECT_EQ(table.sequences(), 0);
    expect_consistent(table);
  }
}

}  // namespace
}  // namespace turboquant::cache
