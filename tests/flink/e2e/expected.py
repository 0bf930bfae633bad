"""What the job must have counted, computed without Flink."""

from collections import defaultdict

from .processes import Failed

# These agree with `Tally.java`.
BALLAST_ENTRIES = 8
_MASK = (1 << 64) - 1


def check(folder, count, keys):
    """Compares the result files with the only right result. Returns the number of keys compared."""
    tallies = {"low": lambda number: number % keys, "high": lambda number: number // 3 % keys}
    return sum(_check_tally(folder, name, count, key_of) for name, key_of in tallies.items())


def _check_tally(folder, name, count, key_of):
    found, seen = _read(folder, name)
    right = _right(count, key_of)
    wrong = [
        f"key {key} of {name} has {found.get(key)} instead of {right.get(key)}"
        for key in sorted(right.keys() | found.keys())
        if found.get(key) != right.get(key)
    ]
    if seen != count:
        wrong.append(f"the operator state of {name} has seen {seen} numbers instead of {count}")
    if wrong:
        raise Failed("\n".join([f"{len(wrong)} wrong lines (count, sum, digest, intact ballast):", *wrong[:20]]))
    return len(right)


def _right(count, key_of):
    totals = defaultdict(lambda: [0, 0, 0])
    for number in range(count):
        total = totals[key_of(number)]
        total[0] += 1
        total[1] += number
        total[2] += mix(number)
    return {
        key: (n, total, digest & _MASK, min(n, BALLAST_ENTRIES))
        for key, (n, total, digest) in totals.items()
    }


def _read(folder, name):
    found, seen = {}, 0
    for file in sorted(folder.glob(f"{name}-*.tsv")):
        for line in file.read_text().splitlines():
            kind, key, *values = line.split("\t")
            if kind == "subtask":
                seen += int(values[0])
            elif int(key) in found:
                raise Failed(f"key {key} of {name} was written by two subtasks")
            else:
                found[int(key)] = tuple(map(int, values))
    return found, seen


def mix(number):
    """The finalizer of SplitMix64."""
    mixed = (number + 0x9E3779B97F4A7C15) & _MASK
    mixed = ((mixed ^ (mixed >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
    mixed = ((mixed ^ (mixed >> 27)) * 0x94D049BB133111EB) & _MASK
    return mixed ^ (mixed >> 31)
