// Fewer passes over a row: what a step's result goes through next is done where it is made, and bfloat16 memory is read
// where its items are used. A row that is not written anew costs a load; the stores are what bounds the kernel.
#include <algorithm>

#include "row_kernel.h"

namespace graphmode {

namespace {

bool is_row(const RowRegister& r) {
  return !r.number && r.index >= 0;
}

bool computes_row(const RowStep& s) {
  return is_row(s.to) && s.op != RowOp::Load;
}

class Combiner {
 public:
  explicit Combiner(RowProgram& program) : p_(program), gone_(program.each.size(), false) {
    const auto n = static_cast<size_t>(p_.vectors);
    uses_.assign(n, {});
    maker_.assign(n, -1);
    narrow_.assign(n, false);
    for (const auto* steps : {&p_.first, &p_.each}) {
      for (const auto& s : *steps) {
        if (s.op == RowOp::Load && is_row(s.to)) {
          narrow_[s.to.index] = p_.places[s.place].bf16;
        }
      }
    }
    for (size_t i = 0; i < p_.each.size(); ++i) {
      const auto& s = p_.each[i];
      for (const auto* r : {&s.a, &s.b}) {
        if (is_row(*r)) {
          uses_[r->index].push_back(i);
        }
      }
      if (computes_row(s)) {
        maker_[s.to.index] = static_cast<int>(i);
      }
    }
  }

  void run() {
    for (size_t i = 0; i < p_.each.size(); ++i) {
      if (p_.each[i].op == RowOp::Round && is_row(p_.each[i].to)) {
        round(i);
      }
    }
    for (size_t i = 0; i < p_.each.size(); ++i) {
      auto& s = p_.each[i];
      if (gone_[i] || !is_row(s.a)) {
        continue;
      }
      if (s.op == RowOp::Store) {
        store(i);
      } else if (s.op == RowOp::Sum || s.op == RowOp::Mean) {
        square(s);
      }
    }
    std::vector<RowStep> left;
    for (size_t i = 0; i < p_.each.size(); ++i) {
      if (!gone_[i]) {
        auto s = p_.each[i];
        s.narrow_a = is_row(s.a) && narrow_[s.a.index];
        s.narrow_b = is_row(s.b) && narrow_[s.b.index];
        if (!s.keeps) {
          s.to.index = -1;
        }
        left.push_back(s);
      }
    }
    p_.each = std::move(left);
  }

 private:
  // The step that makes a register, where it still does.
  RowStep* maker(const RowRegister& of) {
    const int i = maker_[of.index];
    return i < 0 ? nullptr : &p_.each[i];
  }

  void round(size_t i) {
    auto& s = p_.each[i];
    s.rounds = true;
    auto* made = maker(s.a);
    if (made == nullptr || made->rounds) {
      return;
    }
    const auto& users = uses_[s.to.index];
    if (uses_[s.a.index].size() == 1) {
      made->rounds = true;
      made->to = s.to;
      maker_[s.to.index] = maker_[s.a.index];
      gone_[i] = true;
    } else if (users.size() == 1 && p_.each[users[0]].op == RowOp::Store && p_.places[p_.each[users[0]].place].bf16 &&
               made->narrow_place < 0) {
      made->narrow_place = p_.each[users[0]].place;
      gone_[i] = gone_[users[0]] = true;
      std::erase(uses_[s.a.index], i);
    }
  }

  void store(size_t i) {
    const auto& s = p_.each[i];
    auto* made = maker(s.a);
    if (made == nullptr) {
      return;
    }
    if (!p_.places[s.place].bf16) {
      if (made->wide_place < 0) {
        made->wide_place = s.place;
        gone_[i] = true;
        std::erase(uses_[s.a.index], i);
      }
    } else if (made->rounds && made->narrow_place < 0) {
      made->narrow_place = s.place;
      gone_[i] = true;
      std::erase(uses_[s.a.index], i);
      made->keeps = !uses_[s.a.index].empty() || made->wide_place >= 0;
    }
  }

  void square(RowStep& s) {
    auto* made = maker(s.a);
    if (made == nullptr || made->op != RowOp::Square || made->rounds || made->wide_place >= 0 ||
        made->narrow_place >= 0 || uses_[s.a.index].size() != 1) {
      return;
    }
    s.squares = true;
    gone_[static_cast<size_t>(maker_[s.a.index])] = true;
    s.a = made->a;
  }

  RowProgram& p_;
  std::vector<bool> gone_;                 // by step
  std::vector<std::vector<size_t>> uses_;  // by register: the steps that read it
  std::vector<int> maker_;                 // by register: the step that computes it, or -1
  std::vector<bool> narrow_;               // by register: it is bfloat16 memory
};

// As few registers as there are values alive at a time: they have to stay in the nearest cache.
void assign_registers(RowProgram& p) {
  std::vector<int> last(static_cast<size_t>(p.vectors), -1), home(static_cast<size_t>(p.vectors), -1), free;
  int used = 0;
  for (auto& s : p.first) {
    if (!s.to.number) {
      home[s.to.index] = used++;
      s.to.index = home[s.to.index];
    }
  }
  const auto stays = static_cast<int>(used);
  for (size_t i = 0; i < p.each.size(); ++i) {
    for (const auto* r : {&p.each[i].a, &p.each[i].b}) {
      if (!r->number && r->index >= 0) {
        last[r->index] = static_cast<int>(i);
      }
    }
  }
  for (size_t i = 0; i < p.each.size(); ++i) {
    auto& s = p.each[i];
    for (auto* r : {&s.a, &s.b}) {
      if (!r->number && r->index >= 0) {
        const int virtual_index = r->index;
        r->index = home[virtual_index];
        if (last[virtual_index] == static_cast<int>(i) && r->index >= stays) {
          free.push_back(r->index);
          last[virtual_index] = -1;  // read twice by one step: free once
        }
      }
    }
    if (!s.to.number && s.to.index >= 0) {
      int place = used;
      if (free.empty()) {
        ++used;
      } else {
        place = free.back();
        free.pop_back();
      }
      const int virtual_index = s.to.index;
      home[virtual_index] = s.to.index = place;
      if (last[virtual_index] < 0) {
        free.push_back(place);  // nobody reads it
      }
    }
  }
  p.vectors = used;
}

}  // namespace

void combine_steps(RowProgram& program) {
  Combiner(program).run();
  assign_registers(program);
}

}  // namespace graphmode
