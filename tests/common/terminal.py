"""Runs a shell script in a new session with a terminal of its own, 80 columns wide. After the script
come pairs: what is waited for, and what is typed then. Prints all that was seen, and the status."""
import fcntl, os, pty, signal, struct, sys, termios

pairs = list(zip(sys.argv[2::2], sys.argv[3::2]))
signal.alarm(120)
pid, fd = pty.fork()
if pid == 0:
    fcntl.ioctl(0, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
    os.execvp("sh", ["sh", "-c", sys.argv[1]])
told, seen = b"", 0
while True:
    try:
        data = os.read(fd, 4096)
    except OSError:
        break
    if not data:
        break
    told += data
    while pairs and (at := told.find(pairs[0][0].encode(), seen)) >= 0:
        seen = at + len(pairs[0][0])
        os.write(fd, pairs.pop(0)[1].encode() + b"\n")
sys.stdout.write(told.decode())
status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
print("unanswered", len(pairs), "status", status)
