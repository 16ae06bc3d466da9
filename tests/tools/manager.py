# A service manager as sd_notify(3) and systemd.service(5) describe it, for one unit: it starts the
# command with NOTIFY_SOCKET, keeps the descriptors that it is sent, and hands them to the next start.
# Lines on stdin: start | kill | stop | handover | fds | quit. What the service tells is printed.
import array, os, select, signal, socket, sys
path, command = sys.argv[1], sys.argv[2:]
notify = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
notify.bind(path)
notify.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
store, main = [], 0

def start():
    global main
    main = os.fork()
    if main == 0:
        os.setsid()
        held = [os.dup(fd) for _, fd in store]
        base = max([2] + held) + 16
        held = [os.dup2(fd, base + i) for i, fd in enumerate(held)]
        for i, fd in enumerate(held):
            os.dup2(fd, 3 + i, inheritable=True)
        env = dict(os.environ, NOTIFY_SOCKET=path, WATCHDOG_USEC="60000000")
        if held:
            env.update(LISTEN_PID=str(os.getpid()), LISTEN_FDS=str(len(held)),
                       LISTEN_FDNAMES=":".join(name for name, _ in store))
        os.closerange(3 + len(held), 512)
        os.open("/dev/null", os.O_RDONLY)
        os.execvpe(command[0], command, env)
    print("started", main, flush=True)

def reap(limit):
    _, status = os.waitpid(main, 0)
    print("ended", os.waitstatus_to_exitcode(status), flush=True)

def take():
    data, control, _, _ = notify.recvmsg(4096, 4096)
    fds = array.array("i")
    for level, kind, part in control:
        if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
            fds.frombytes(part[: len(part) - len(part) % fds.itemsize])
    lines = data.decode().split("\n")
    fields = dict(line.split("=", 1) for line in lines if "=" in line)
    name = fields.get("FDNAME", "stored")
    if "FDSTORE" in fields:
        store.extend((name, fd) for fd in fds)
    elif "FDSTOREREMOVE" in fields:
        for entry in [e for e in store if e[0] == name]:
            store.remove(entry)
            os.close(entry[1])
    else:
        for fd in fds:
            os.close(fd)
    print("told", " ".join(lines), flush=True)

print("listening", flush=True)
while True:
    ready, _, _ = select.select([notify, sys.stdin], [], [])
    if notify in ready:
        take()
        continue
    word = sys.stdin.readline().strip()
    if word == "start":
        start()
    elif word in ("kill", "stop", "handover"):
        os.kill(main, {"kill": signal.SIGKILL, "stop": signal.SIGTERM, "handover": signal.SIGUSR1}[word])
        reap(10)
    elif word == "fds":
        print("fds", " ".join(sorted(name for name, _ in store)), flush=True)
    elif word in ("quit", ""):
        break
