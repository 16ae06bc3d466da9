"""Carries out one step after the other, on the events directory and on a plain one alike.

Each line of input is a JSON list: what to do, and with what. The answer is a JSON list: what came
out on the events directory, and on the plain one. An error is "!" and its name.
"""

import errno, fcntl, json, os, sys

ROOTS = (os.environ["STRONGROOM_EVENTS_DIR"], sys.argv[1])
FLAGS = {
    "r": os.O_RDONLY, "w": os.O_WRONLY, "rw": os.O_RDWR, "a": os.O_WRONLY | os.O_APPEND,
    "ra": os.O_RDWR | os.O_APPEND, "c": os.O_WRONLY | os.O_CREAT, "cx": os.O_RDWR | os.O_CREAT | os.O_EXCL,
    "ct": os.O_RDWR | os.O_CREAT | os.O_TRUNC, "ca": os.O_WRONLY | os.O_CREAT | os.O_APPEND,
}
RWF_APPEND, RWF_NOAPPEND = 0x10, 0x20
held = {}


def both(do):
    out = []
    for which, root in enumerate(ROOTS):
        try:
            out.append(do(which, root))
        except OSError as error:
            out.append("!" + errno.errorcode[error.errno])
    return out


def attempt(which, root, name, args):
    at = lambda path: os.path.join(root, path)
    if name == "mkdir":
        return os.mkdir(at(args[0]))
    if name == "rmdir":
        return os.rmdir(at(args[0]))
    if name == "unlink":
        return os.unlink(at(args[0]))
    if name == "rename":
        return os.rename(at(args[0]), at(args[1]))
    if name == "truncate":
        return os.truncate(at(args[0]), args[1])
    if name == "list":
        return sorted(os.listdir(at(args[0])))
    if name == "stat":
        found = os.stat(at(args[0]))
        return found.st_size if found.st_mode & 0o100000 else "directory"
    fd = held[args[0]][which]
    if name == "write":
        return os.write(fd, bytes.fromhex(args[1]))
    if name == "pwrite":
        return os.pwrite(fd, bytes.fromhex(args[2]), args[1])
    if name == "append":
        # Python passes these flags on as they are.
        return os.pwritev(fd, [bytes.fromhex(args[1])], 0, RWF_APPEND)
    if name == "noappend":
        # At the end or behind it: what lies before may be a length that the file once had, which is
        # taken for an append.
        at = os.fstat(held[args[0]][1]).st_size + args[1] % 7
        return os.pwritev(fd, [bytes.fromhex(args[2])], at, RWF_NOAPPEND)
    if name == "read":
        return os.read(fd, args[1]).hex()
    if name == "pread":
        return os.pread(fd, args[2], args[1]).hex()
    if name == "seek":
        return os.lseek(fd, args[1], args[2])
    if name == "ftruncate":
        return os.ftruncate(fd, args[1])
    if name == "fstat":
        return os.fstat(fd).st_size
    if name == "fsync":
        return os.fsync(fd)
    if name == "allocate":
        return os.posix_fallocate(fd, args[1], args[2])
    if name == "appending":
        flags = fcntl.fcntl(fd, fcntl.F_GETFL)
        flags = flags | os.O_APPEND if args[1] else flags & ~os.O_APPEND
        fcntl.fcntl(fd, fcntl.F_SETFL, flags)
        return None
    raise ValueError(name)


def carry_out(name, args):
    if name == "open":
        slot, path, flags = args
        out = both(lambda _, root: os.open(os.path.join(root, path), FLAGS[flags], 0o644))
        good = [fd for fd in out if isinstance(fd, int)]
        if len(good) == 2:
            held[slot] = good
            return [0, 0]
        for fd in good:
            os.close(fd)
        return ["" if isinstance(fd, int) else fd for fd in out]
    if name == "close":
        for fd in held.pop(args[0]):
            os.close(fd)
        return [0, 0]
    return both(lambda which, root: attempt(which, root, name, args))


print("ready", flush=True)
for line in sys.stdin:
    name, *args = json.loads(line)
    print(json.dumps(carry_out(name, args)), flush=True)
