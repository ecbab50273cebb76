"""Loops as nobody should write them: what they do is told to ``LOG``, and must not depend on marks."""

# ruff: noqa
# fmt: off
import asyncio
import itertools
import sys

LOG = []
def log(*what): LOG.append(repr(what))

class Closed:
    """An iterator that tells when it is let go."""
    def __init__(self, name, items): self.name, self.items = name, iter(items)
    def __iter__(self): return self
    def __next__(self): return next(self.items)
    def __del__(self): log("gone", self.name)

def told(name, items):
    try:
        for item in items: yield item
    finally: log("closed", name)

# 1-6: else, break, continue, return
for i in range(3): log(i)
else: log("else", i)
for i in Closed("break", range(5)):
    if i == 2: break
else: log("no else")
log("after break")
for i in range(4):
    if i % 2: continue
    log("even", i)
def returns(items):
    for i in items:
        if i: return log("returning", i)
    else: return "else"
log(returns(told("return", [0, 1, 2])), returns([]))
def returns_in_try(items):
    try:
        for i in items: return i
    finally: log("finally, behind the iterator's end")
log(returns_in_try(told("try", "ab")))
# 7-9: exceptions
try:
    for i in Closed("raise", [1]): raise ValueError(i)
except ValueError as error: log("caught", error)
log("after raise")
def reraises():
    for i in told("inner", [1]):
        try: 1 / 0
        except ZeroDivisionError as error: raise KeyError(i) from error
try: reraises()
except KeyError as error: log(type(error.__cause__).__name__, error.__traceback__.tb_next.tb_lineno)
for i in [0]:
    try: continue
    finally: log("finally on continue")
# 10-14: generators
def squares():
    for i in itertools.count():
        sent = yield i * i
        if sent: log("sent", sent)
g = squares(); next(g); next(g); g.send("x"); g.close()
def delegating():
    for part in ("ab", "cd"): yield from part
log(list(delegating()))
def closing():
    for i in told("outer", range(9)):
        try: yield i
        except GeneratorExit: log("exit", i); raise
c = closing(); next(c); next(c); c.close()
c = closing(); next(c); del c
log("after the generators")
# 15-18: nested functions, scopes
def scopes():
    total = 0
    def add():
        nonlocal total
        for i in range(3): total += i
    add(); add()
    return total, sorted(locals())
log(scopes())
counted = 0
def globals_too():
    global counted
    for counted in range(5): pass
globals_too(); log(counted)
log([n for n in dir() if "otf" in n], [n for n in globals() if n.startswith("__otf")])
for name in list(globals()):
    if name == "LOG": log("found", name)
# 19-24: targets
for a, *b in [(1, 2, 3), "xy"]: log(a, b)
for (a, (b, c)) in [(1, (2, 3))]: log(a, b, c)
d = {}
for d["key"] in range(2): log(d)
class Box: pass
box = Box()
for box.item in "pq": log(box.item)
for i in range(2): del i
for d[(lambda: 0)()], *_ in [(5, 6)]: log(d)
# 25-28: walrus and loop variables that outlive
while (n := len(LOG) % 3) and n > 5: log("never")
if any((hit := v) > 1 for v in range(4)): log(hit)
for i in (last := [1, 2]): last.append(3) if len(last) < 4 else None
log(i, last)
for i in range(3):
    for i in range(i): log("inner", i)
# 29-33: while
k = 0
while k < 3:
    k += 1
    if k == 2: continue
    log("while", k)
else: log("while else")
while True:
    k += 1
    if k > 5: break
while k: k -= 1
log(k)
def forever():
    while 1:
        try: return "out"
        finally: log("leaving")
log(forever())
# 34-38: class bodies, lambdas, comprehensions
class Body:
    made = []
    for item in range(3): made.append(item)
    while len(made) < 5: made.append(0)
    squares = [i * i for i in made]
    def method(self):
        for __private in (1,): self.__kept = __private
        return vars(self)
log(sorted(n for n in vars(Body) if "otf" in n), Body.made, Body.squares, Body().method())
import enum
class Colour(enum.Enum):
    _ignore_ = ["name_"]
    for name_ in ("RED", "BLUE"): vars()[name_] = name_.lower()
log(list(Colour))
log({k: [v for v in range(k)] for k in range(3)}, {x for x in "aab"}, list(x for x in [1] if x))
# 39-42: async
class Ticker:
    def __init__(self, n): self.n = n
    def __aiter__(self): return self
    async def __anext__(self):
        if not self.n: raise StopAsyncIteration
        self.n -= 1
        return self.n
async def ticks():
    async for t in Ticker(2):
        for u in range(t): log("async", t, u)
    for t in range(2): await asyncio.sleep(0)
    async def agen():
        for i in range(2): yield i
    return [x async for x in agen()]
log(asyncio.run(ticks()))
# 43-46: with, try in loops, deep nesting
import contextlib
@contextlib.contextmanager
def ctx(name):
    log("enter", name)
    yield
    log("leave", name)
for i in range(2):
    with ctx(i):
        if i: break
for i in range(2):
    try:
        for j in range(2):
            try:
                if j: raise LookupError
            except LookupError: break
            finally: log("innermost", i, j)
        else: log("not here")
    finally: log("outer finally", i)
try:
    for i in 5: pass
except TypeError as error: log(error)
# 47-52: iterators that others hold, mutation, exhaustion, match
it = iter(range(6))
for i in it:
    log("pair", i, next(it, None))
e = enumerate("abc")
for i, ch in e: log(i, ch, next(e, None))
z = zip(range(2), "ab")
log(next(z)); [log(p) for p in z]
items = [1, 2, 3]
for i in items:
    if len(items) < 5: items.append(i * 10)
log(items)
for i in {1: 2}: log(i)
for line in iter(lambda c=itertools.count(): next(c), 3): log("sentinel", line)
match [1, 2]:
    case [a, b]:
        for i in (a, b): log("match", i)
for i in reversed([1, 2]): log(i)
for f in [lambda: i for i in range(2)]: log(f())
for s in (sys.getsizeof(""),) * 2: pass
exec("for q in range(2): log('exec', q)")
log(eval("[i for i in range(2)]"))
def many(*args, **kw):
    for a in args:
        for b in kw:
            for c in kw[b]: yield a, b, c
log(list(many(1, 2, x=[1], y="z")))
@lambda f: f
def decorated():
    for i in ():
        pass
    return i if False else "no i"
log(decorated())
for i, in [(1,), (2,)]: log(i)
for i in [*range(2), *"a"]: log(i)
for i in {3}: log(i)
for i in f"{1}{2}": log(i)
for i in b"ab": log(i)
