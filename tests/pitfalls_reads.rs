//! Ways to read, and to ask for what is no reading: on the real mount, with the kernel's own paths.

mod common;
#[path = "tools/mod.rs"]
mod tools;

use common::{Home, OPENAI, may_mount, text};
use tools::{Talker, compile, good, has, obedient, principal_dir, python, requests};

#[test]
fn every_common_tool_copies_the_whole_secret() {
    if !may_mount() || !has("busybox") || !has("node") {
        return;
    }
    let home = Home::deployed();
    let to = home.dir.path().join("copied");
    let tools = [
        ("cat", "cat \"$F\" > \"$T\""),
        ("cp", "cp \"$F\" \"$T\""),
        ("cp by reflink", "cp --reflink=auto --sparse=always \"$F\" \"$T\""),
        ("dd", "dd if=\"$F\" of=\"$T\" bs=7 status=none"),
        ("dd of direct reads", "dd if=\"$F\" of=\"$T\" iflag=direct bs=4096 status=none"),
        ("install", "install -m 600 \"$F\" \"$T\""),
        ("tar", "tar -C \"${F%/*}\" -cf - OPENAI_API_KEY | tar -xOf - > \"$T\""),
        ("busybox cat, by sendfile", "busybox cat \"$F\" > \"$T\""),
        ("busybox cp", "busybox cp \"$F\" \"$T\""),
        (
            "copyfile of python, by sendfile",
            "/usr/bin/python3 -c 'import shutil,sys;shutil.copyfile(*sys.argv[1:])' \"$F\" \"$T\"",
        ),
        (
            "copyFile of node",
            "node -e 'require(\"fs\").copyFileSync(process.argv[1],process.argv[2])' \"$F\" \"$T\"",
        ),
        (
            "readFile of node",
            "node -e 'const f=require(\"fs\");f.writeFileSync(process.argv[2],\
             f.readFileSync(process.argv[1]))' \"$F\" \"$T\"",
        ),
        ("perl", "perl -0777 -pe '' \"$F\" > \"$T\""),
        ("the shell", "printf %s \"$(< \"$F\")\" > \"$T\""),
        ("head", "head -c 1000000 \"$F\" > \"$T\""),
        ("tail", "tail -c +1 \"$F\" > \"$T\""),
        ("sort", "sort \"$F\" | tr -d '\\n' > \"$T\""),
    ];
    let mut script = format!("F=$CREDENTIALS_DIRECTORY/OPENAI_API_KEY; T={}\n", to.display());
    for (name, command) in tools {
        script.push_str(&format!(
            "rm -f \"$T\"; {command} || echo FAILED {name}\n\
             [ \"$(cat \"$T\")\" = '{OPENAI}' ] && echo whole || echo NOT WHOLE {name}\n"
        ));
    }
    // `$(< file)` and `${F%/*}` are bash's.
    let file = tools::script(&home, "tools.sh", &script);
    let told = good(&home.agent("CodeAnalyzer", &format!("bash {}", file.display())));
    assert_eq!(told, "whole\n".repeat(tools.len()));
}

// A fill of the page cache that was served would be there for the next process without a request.
#[test]
fn what_one_reader_was_refused_the_next_does_not_find_in_the_page_cache() {
    if !may_mount() {
        return;
    }
    let home = Home::deployed();
    let script = r#"
import errno, mmap, os
path = os.environ["CREDENTIALS_DIRECTORY"] + "/OPENAI_API_KEY"
def attempts(who):
    fd = os.open(path, os.O_RDONLY)
    r, w = os.pipe()
    out = os.open("out." + who, os.O_RDWR | os.O_CREAT)
    for name, call in [("sendfile", lambda: os.sendfile(w, fd, 0, 10)),
                       ("splice", lambda: os.splice(fd, w, 10, offset_src=0)),
                       ("copy_file_range", lambda: os.copy_file_range(fd, out, 10, 0))]:
        try:
            print(who, name, call())
        except OSError as e:
            print(who, name, errno.errorcode[e.errno])
    print(who, "copied", os.fstat(out).st_size, flush=True)
    pid = os.fork()
    if pid == 0:
        os._exit(mmap.mmap(fd, 4, mmap.MAP_PRIVATE, mmap.PROT_READ)[0])
    print(who, "signal", os.waitpid(pid, 0)[1] & 127)
    return fd
os.chdir(os.environ["WHERE"])
first = attempts("first")
# A willing read in between leaves nothing behind either.
os.pread(first, 100, 0)
attempts("second")
# What the refused reader of the future inherits is a mapping without pages.
m = mmap.mmap(first, 4, mmap.MAP_PRIVATE, mmap.PROT_READ)
pid = os.fork()
if pid == 0:
    os._exit(m[0])
print("inherited signal", os.waitpid(pid, 0)[1] & 127)
"#;
    let mut home = home;
    home.env.push(("WHERE".into(), home.dir.path().to_str().unwrap().to_owned()));
    let told = python(&home, "CodeAnalyzer", script, &[]);
    let mut want = String::new();
    for who in ["first", "second"] {
        // Between filesystems copy_file_range(2) does not even ask.
        for (way, errno) in
            [("sendfile", "EINVAL"), ("splice", "EINVAL"), ("copy_file_range", "EXDEV")]
        {
            want.push_str(&format!("{who} {way} {errno}\n"));
        }
        want.push_str(&format!("{who} copied 0\n{who} signal {}\n", libc::SIGBUS));
    }
    want.push_str(&format!("inherited signal {}\n", libc::SIGBUS));
    assert_eq!(told, want);
    // One willing read; the refusals are one record, with the reason.
    assert_eq!(home.records("secret_accessed").len(), 1);
    let denied = home.records("secret_denied");
    assert_eq!(denied.len(), 1, "{denied:?}");
    assert_eq!(denied[0]["reason"], "the page cache may not hold this file");
    assert_eq!(denied[0]["agent"], "CodeAnalyzer");
}

// A poller's request shows who made the ring, and a ring can be shared with another process.
#[test]
fn io_uring_and_libaio_read_the_whole_secret_and_a_polling_ring_nothing() {
    if !may_mount() || !has("cc") {
        return;
    }
    let home = Home::deployed();
    let rings = compile(&home, "rings");
    let script = format!("{} $CREDENTIALS_DIRECTORY/OPENAI_API_KEY", rings.display());
    let told = text(&home.agent("CodeAnalyzer", &script));
    let forbidden = |how: &str| {
        told.lines().any(|l| {
            l == format!("{how} errno {}", libc::EPERM)
                || l == format!("{how} errno {}", libc::ENOSYS)
        })
    };
    if forbidden("inline") {
        common::cannot_run("io_uring is switched off on this host");
        return;
    }
    let lines: Vec<_> = told.lines().collect();
    assert_eq!(
        lines,
        [
            &format!("inline {OPENAI}"),
            &format!("worker {OPENAI}"),
            &format!("poller errno {}", libc::EACCES),
            &format!("aio {OPENAI}"),
        ]
    );
    assert_eq!(home.records("secret_accessed").len(), 3);
}

#[test]
fn hostile_offsets_and_sizes_read_the_file_and_nothing_else() {
    if !may_mount() {
        return;
    }
    let home = Home::deployed();
    let script = r#"
import ctypes, errno, os
path = os.environ["CREDENTIALS_DIRECTORY"] + "/OPENAI_API_KEY"
fd = os.open(path, os.O_RDONLY)
size = os.fstat(fd).st_size
libc = ctypes.CDLL(None, use_errno=True)
libc.pread.argtypes = [ctypes.c_int, ctypes.c_void_p, ctypes.c_size_t, ctypes.c_longlong]
libc.pread.restype = ctypes.c_ssize_t
libc.lseek.argtypes = [ctypes.c_int, ctypes.c_longlong, ctypes.c_int]
libc.lseek.restype = ctypes.c_longlong
room = ctypes.create_string_buffer(1 << 20)
def result(n):
    return n if n >= 0 else errno.errorcode[ctypes.get_errno()]
def pread(count, at):
    return result(libc.pread(fd, room, count, at))
print("past the end", [pread(10, at) for at in (size, size + 1, 4096, 1 << 32, (1 << 62))])
print("last offsets", [pread(10, at) for at in ((1 << 63) - 4097, (1 << 63) - 1)])
print("negative", [pread(10, at) for at in (-1, -(1 << 63))])
print("nothing", pread(0, 0), pread(0, size + 5))
print("last byte", pread(10, size - 1), pread(1 << 20, 3) == size - 3)
print("much", pread(1 << 20, 0) == size)
print("a null address", result(libc.pread(fd, None, 10, 0)))
for name, whence in (("data", 3), ("hole", 4)):
    print("seek", name, [result(libc.lseek(fd, at, whence)) for at in (0, -1)])
print("seek end", libc.lseek(fd, 0, 2) == size, os.read(fd, 10))
os.lseek(fd, 0, 0)
print("by bytes", b"".join(iter(lambda: os.read(fd, 1), b"")).decode())
bufs = [bytearray(5), bytearray(1), bytearray(100)]
print("vectors", os.preadv(fd, bufs, 0) == size, bytes(bufs[0] + bufs[1])[:6].decode())
print("whole", os.pread(fd, 100, 0).decode())
"#;
    let told = python(&home, "CodeAnalyzer", script, &[]);
    let lines: Vec<_> = told.lines().collect();
    assert_eq!(
        lines,
        [
            "past the end [0, 0, 0, 0, 0]",
            "last offsets [0, 'EINVAL']",
            "negative ['EINVAL', 'EINVAL']",
            "nothing 0 0",
            "last byte 1 True",
            "much True",
            "a null address EFAULT",
            "seek data ['EINVAL', 'ENXIO']",
            "seek hole ['EINVAL', 'ENXIO']",
            "seek end True b''",
            &format!("by bytes {OPENAI}"),
            "vectors True sk-pro",
            &format!("whole {OPENAI}"),
        ],
        "{told}"
    );
}

#[test]
fn what_would_change_or_bypass_a_secret_is_refused_with_its_own_number() {
    if !may_mount() || !has("cc") {
        return;
    }
    let home = Home::deployed();
    let script = r#"
import ctypes, errno, fcntl, os, struct
d = os.environ["CREDENTIALS_DIRECTORY"]
path = d + "/OPENAI_API_KEY"
fd = os.open(path, os.O_RDONLY)
libc = ctypes.CDLL(None, use_errno=True)
def attempt(name, call):
    try:
        print(name, call())
    except OSError as e:
        print(name, errno.errorcode[e.errno])
def raw(n):
    if n < 0:
        raise OSError(ctypes.get_errno(), "")
    return n
other = d + "/other"
for name, flags in [("O_WRONLY", os.O_WRONLY), ("O_RDWR", os.O_RDWR),
                    ("O_TRUNC", os.O_RDONLY | os.O_TRUNC), ("O_APPEND", os.O_WRONLY | os.O_APPEND)]:
    attempt(name, lambda: os.open(path, flags))
attempt("create", lambda: os.open(other, os.O_CREAT | os.O_WRONLY, 0o600))
attempt("create over", lambda: os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600))
attempt("O_TMPFILE", lambda: os.open(d, os.O_TMPFILE | os.O_RDWR, 0o600))
attempt("truncate", lambda: os.truncate(path, 0))
attempt("fallocate", lambda: raw(libc.fallocate(fd, 0, ctypes.c_long(0), ctypes.c_long(10))))
attempt("write", lambda: os.write(fd, b"x"))
attempt("unlink", lambda: os.unlink(path))
attempt("rename", lambda: os.rename(path, other))
attempt("rename onto", lambda: os.rename(d + "/.identity", path))
attempt("hard link", lambda: os.link(path, other))
attempt("hard link by descriptor",
        lambda: os.link("/proc/self/fd/%d" % fd, other, follow_symlinks=True))
attempt("hard link outside", lambda: os.link(path, os.environ["HOME_DIR"] + "/stolen"))
attempt("symlink", lambda: os.symlink("/etc/passwd", other))
attempt("mkdir", lambda: os.mkdir(other))
attempt("rmdir", lambda: os.rmdir(d + "/."))
attempt("fifo", lambda: os.mkfifo(other))
attempt("device", lambda: os.mknod(other, 0o20600, os.makedev(1, 3)))
attempt("socket", lambda: os.mknod(other, 0o140600))
attempt("chmod", lambda: os.chmod(path, 0o777))
attempt("chown", lambda: os.chown(path, 65534, 65534))
attempt("utime", lambda: os.utime(path))
attempt("setxattr", lambda: os.setxattr(path, "user.x", b"x"))
attempt("removexattr", lambda: os.removexattr(path, "user.x"))
attempt("getxattr", lambda: os.getxattr(path, "user.x"))
attempt("listxattr", lambda: os.listxattr(path))
attempt("acl", lambda: os.getxattr(path, "system.posix_acl_access"))
attempt("ioctl", lambda: fcntl.ioctl(fd, 0x80086601, b"\0" * 8))
attempt("fionread", lambda: fcntl.ioctl(fd, 0x541B, b"\0" * 4))
attempt("record lock", lambda: fcntl.lockf(fd, fcntl.LOCK_SH))
attempt("flock", lambda: fcntl.flock(fd, fcntl.LOCK_EX))
attempt("lease", lambda: fcntl.fcntl(fd, fcntl.F_SETLEASE, fcntl.F_RDLCK))
attempt("readlink", lambda: os.readlink(path))
attempt("below a file", lambda: os.open(path + "/x", os.O_RDONLY))
attempt("file as directory", lambda: os.open(path, os.O_RDONLY | os.O_DIRECTORY))
attempt("directory as file", lambda: os.read(os.open(d, os.O_RDONLY), 10))
attempt("exec", lambda: os.execv(path, ["x"]))
attempt("access for exec", lambda: os.access(path, os.X_OK))
attempt("fsync", lambda: os.fsync(fd))
class Handle(ctypes.Structure):
    _fields_ = [("bytes", ctypes.c_uint), ("type", ctypes.c_int), ("data", ctypes.c_ubyte * 128)]
handle, where = Handle(bytes=128), ctypes.c_int()
made = libc.name_to_handle_at(fd, b"", ctypes.byref(handle), ctypes.byref(where), 0x1000)
attempt("name_to_handle_at", lambda: raw(made))
# Forged: the format that FUSE gives out (an inode number and a generation).
handle = Handle(bytes=12, type=0x81)
inode = os.fstat(fd).st_ino
struct.pack_into("=IIi", handle.data, 0, inode >> 32, inode & 0xffffffff, 0)
mount = os.open(d, os.O_RDONLY)
attempt("open_by_handle_at",
        lambda: raw(libc.open_by_handle_at(mount, ctypes.byref(handle), os.O_RDONLY)))
print(sorted(os.listdir(d)), os.pread(fd, 100, 0).decode())
"#;
    let mut home = home;
    home.env.push(("HOME_DIR".into(), home.dir.path().to_str().unwrap().to_owned()));
    let told = python(&home, "CodeAnalyzer", script, &[]);
    let readonly = [
        "O_WRONLY",
        "O_RDWR",
        "O_TRUNC",
        "O_APPEND",
        "create",
        "truncate",
        "unlink",
        "rename",
        "rename onto",
        "hard link",
        "symlink",
        "mkdir",
        "fifo",
        "device",
        "socket",
        "chmod",
        "chown",
        "utime",
        "setxattr",
        "removexattr",
    ];
    let others = [
        ("create over", "EEXIST"),
        // The request that the kernel sends is younger than fuser's protocol.
        ("O_TMPFILE", "ENOTSUP"),
        // Refused by the descriptor's own mode.
        ("fallocate", "EBADF"),
        ("write", "EBADF"),
        ("hard link by descriptor", "EXDEV"),
        ("hard link outside", "EXDEV"),
        ("rmdir", "EINVAL"),
        ("getxattr", "ENOTSUP"),
        ("listxattr", "ENOTSUP"),
        ("ioctl", "ENOTTY"),
        ("readlink", "EINVAL"),
        ("below a file", "ENOTDIR"),
        ("file as directory", "ENOTDIR"),
        ("directory as file", "EISDIR"),
        ("exec", "EACCES"),
        ("access for exec", "False"),
        ("fsync", "None"),
        ("name_to_handle_at", "ENOTSUP"),
        ("open_by_handle_at", "ESTALE"),
    ];
    let all = readonly.iter().map(|name| (*name, "EROFS")).chain(others);
    for (name, errno) in all {
        let line = format!("{name} {errno}");
        assert!(told.lines().any(|l| l == line), "not {line}: {told}");
    }
    assert!(
        told.ends_with(&format!("['.identity', 'OPENAI_API_KEY', 'events'] {OPENAI}\n")),
        "{told}"
    );
    assert!(!home.dir.path().join("stolen").exists());
}

// A stranger's dentry, made by an agent's lookup a moment before, must not let it in.
#[test]
fn a_stranger_who_opens_right_after_an_agent_finds_nothing() {
    if !may_mount() {
        return;
    }
    let home = Home::deployed();
    let shared = home.mount().join("OPENAI_API_KEY");
    let reader = r#"
import os, sys
print("ready", flush=True)
while not os.path.exists(os.environ["STOP"]):
    for path in (os.environ["SHARED"], os.environ["CREDENTIALS_DIRECTORY"] + "/OPENAI_API_KEY"):
        fd = os.open(path, os.O_RDONLY)
        assert len(os.pread(fd, 100, 0)) == 31
        os.close(fd)
"#;
    let mut home = home;
    let stop = home.dir.path().join("stop");
    home.env.push(("SHARED".into(), shared.to_str().unwrap().to_owned()));
    home.env.push(("STOP".into(), stop.to_str().unwrap().to_owned()));
    let run = ["--chain", "deploy-pipeline", "--agent", "CodeAnalyzer", "--env", "prod"];
    let mut agent = Talker::agent(&home, &run, "reader.py", reader);
    assert_eq!(agent.line(), "ready");
    let agent_pid = child_of(agent.id());
    let own = principal_dir(&home, &agent_pid).join("OPENAI_API_KEY");
    let before = home.records("secret_accessed").len();
    for round in 0..4000 {
        for path in [&shared, &own] {
            let errno = std::fs::File::open(path).unwrap_err().raw_os_error();
            assert_eq!(errno, Some(libc::ENOENT), "round {round}: {}", path.display());
            let errno = std::fs::metadata(path).unwrap_err().raw_os_error();
            assert_eq!(errno, Some(libc::ENOENT), "round {round}: {}", path.display());
        }
    }
    // The agent read all the while, and was never disturbed.
    assert!(home.records("secret_accessed").len() > before);
    std::fs::write(&stop, "").unwrap();
    assert_eq!(agent.end(), (Vec::new(), true));
}

/// The agent's process: the only child of its launcher, or the launcher itself where that was
/// replaced by the command.
fn child_of(launcher: u32) -> String {
    let children =
        std::fs::read_to_string(format!("/proc/{launcher}/task/{launcher}/children")).unwrap();
    match children.trim() {
        "" => launcher.to_string(),
        child => child.to_owned(),
    }
}

// FLUSH comes once for each process that closes, RELEASE from nobody.
#[test]
fn children_that_hold_a_descriptor_and_exit_leave_no_record_of_a_read() {
    if !may_mount() {
        return;
    }
    let home = Home::deployed();
    let script = r#"
import os
fd = os.open(os.environ["CREDENTIALS_DIRECTORY"] + "/OPENAI_API_KEY", os.O_RDONLY)
for _ in range(20):
    if os.fork() == 0:
        os._exit(0)
    os.wait()
os.close(os.dup(fd))
os.close(fd)
os.close(os.open(os.environ["CREDENTIALS_DIRECTORY"] + "/OPENAI_API_KEY", os.O_RDONLY))
os.stat(os.environ["CREDENTIALS_DIRECTORY"] + "/OPENAI_API_KEY")
"#;
    assert_eq!(python(&home, "CodeAnalyzer", script, &[]), "");
    assert_eq!(home.records("secret_accessed").len(), 0);
    assert_eq!(home.records("secret_denied").len(), 0);
}

#[test]
fn eight_readers_leave_exactly_as_many_records_as_they_read() {
    if !may_mount() {
        return;
    }
    let home = Home::deployed();
    let script = r#"
import os, threading
path = os.environ["CREDENTIALS_DIRECTORY"] + "/"
def read(name, size):
    for i in range(50):
        fd = os.open(path + name, os.O_RDONLY)
        assert len(os.read(fd, 4096)) == size
        # To the end and beyond: still one reading.
        assert os.read(fd, 4096) == b""
        os.close(fd)
children = []
for i in range(8):
    pid = os.fork()
    if pid == 0:
        name = ("OPENAI_API_KEY", "DATABASE_URL")[i % 2]
        size = os.stat(path + name).st_size
        t = threading.Thread(target=read, args=(name, size))
        t.start(); read(name, size); t.join()
        os._exit(0)
    children.append(pid)
print([os.waitpid(pid, 0)[1] for pid in children])
"#;
    let told = python(&home, "TestRunner", script, &[]);
    assert_eq!(told.trim(), "[0, 0, 0, 0, 0, 0, 0, 0]");
    let records = home.records("secret_accessed");
    let of = |key: &str| records.iter().filter(|r| r["secret_key"] == key).count();
    assert_eq!((of("OPENAI_API_KEY"), of("prod/DATABASE_URL")), (400, 400));
    assert!(home.ok(&["audit", "verify"]).starts_with("ok: "));
}

// A stream of a directory belongs to whoever reads it, also when the descriptor was passed.
#[test]
fn listings_of_two_callers_are_never_mixed_and_positions_hold() {
    if !may_mount() {
        return;
    }
    let home = Home::deployed();
    let mut tester = obedient(&home, "TestRunner", "tester.py");
    // Positions of the C library's own stream: each entry is found again at its own.
    let positions = r#"
import ctypes, os, sys
libc = ctypes.CDLL(None)
class Entry(ctypes.Structure):
    _fields_ = [("ino", ctypes.c_ulong), ("off", ctypes.c_long), ("len", ctypes.c_ushort),
                ("type", ctypes.c_ubyte), ("name", ctypes.c_char * 256)]
libc.opendir.restype = ctypes.c_void_p
libc.readdir.restype = ctypes.POINTER(Entry)
libc.telldir.restype = ctypes.c_long
for f in (libc.readdir, libc.telldir, libc.rewinddir):
    f.argtypes = [ctypes.c_void_p]
libc.seekdir.argtypes = [ctypes.c_void_p, ctypes.c_long]
stream = libc.opendir(os.environ["CREDENTIALS_DIRECTORY"].encode())
at = []
while True:
    where = libc.telldir(stream)
    entry = libc.readdir(stream)
    if not entry:
        break
    at.append((where, entry.contents.name.decode(), entry.contents.ino))
print([name for _, name, _ in at])
for where, name, ino in reversed(at):
    libc.seekdir(stream, where)
    entry = libc.readdir(stream).contents
    assert (entry.name.decode(), entry.ino) == (name, ino), name
for where in (1 << 40, (1 << 62) + 5, len(at), len(at) + 1):
    libc.seekdir(stream, where)
    assert not libc.readdir(stream), where
libc.rewinddir(stream)
assert libc.readdir(stream).contents.name == b"."
for _, name, ino in at[2:]:
    assert os.stat(os.environ["CREDENTIALS_DIRECTORY"] + "/" + name).st_ino == ino, name
"#;
    let told = python(&home, "Deployer", positions, &[]);
    assert_eq!(
        told.trim(),
        "['.', '..', '.identity', 'events', 'AWS_ACCESS_KEY_ID', 'AWS_SECRET_ACCESS_KEY', 'OPENAI_API_KEY', \
         'id_deploy']"
    );
    // Both list the shared root, in turns; each sees its own.
    let root = format!("sorted(os.listdir({:?}))", home.mount());
    for _ in 0..50 {
        assert_eq!(tester.ask(&root), "['.identity', 'DATABASE_URL', 'OPENAI_API_KEY', 'events']");
        let names: Vec<_> =
            std::fs::read_dir(home.mount()).unwrap().map(|e| e.unwrap().file_name()).collect();
        assert_eq!(names, [".identity"]);
    }
    // A directory of the agent in a stranger's hands: opened by one, read by the other.
    let held = format!("keep('d', os.open(d, os.O_RDONLY)) and {:?}", "held");
    assert_eq!(tester.ask(&held), "held");
    let pid = tester.ask("os.getpid()");
    let fd = tester.ask("held['d']");
    let through = format!("/proc/{pid}/fd/{fd}");
    let names: Vec<_> =
        std::fs::read_dir(&through).unwrap().map(|e| e.unwrap().file_name()).collect();
    assert_eq!(names, [".identity"]);
    let errno = std::fs::File::open(format!("{through}/DATABASE_URL")).unwrap_err().raw_os_error();
    assert_eq!(errno, Some(libc::ENOENT));
}

#[test]
fn hostile_names_are_absent_and_never_disturb() {
    if !may_mount() {
        return;
    }
    let home = Home::deployed();
    let script = r#"
import errno, os
d = os.environ["CREDENTIALS_DIRECTORY"].encode()
def attempt(name):
    try:
        fd = os.open(d + b"/" + name, os.O_RDONLY)
        os.close(fd)
        return "opened"
    except OSError as e:
        return errno.errorcode[e.errno]
    except ValueError:
        return "impossible"
for what, name in [
    ("255 bytes", b"x" * 255), ("256 bytes", b"x" * 256), ("4096 bytes", b"x" * 4096),
    ("not UTF-8", b"OPENAI_API_KEY\xff"), ("overlong", b"\xc0\xafetc"),
    ("NUL", b"OPENAI\0_API_KEY"),
    ("lower case", b"openai_api_key"), ("mixed case", b"Openai_Api_Key"),
    ("full width", "\uff2fPENAI_API_KEY".encode()), ("trailing space", b"OPENAI_API_KEY "),
    ("trailing dot", b"OPENAI_API_KEY."), ("newline", b"OPENAI_API_KEY\n"),
    ("escapes", b"\x1b[2J\x1b]0;x\x07"), ("format", b"%s%n%x"),
    ("environment", b"prod/OPENAI_API_KEY"),
    ("at", b"OPENAI_API_KEY@current"), ("other's", b"DATABASE_URL"), ("backslash", b"..\\..\\etc"),
    ("dots", b"..."), ("dot", b"./OPENAI_API_KEY"),
    ("dot dot", b"../" + os.path.basename(d) + b"/OPENAI_API_KEY"),
]:
    print(what, attempt(name))
print(sorted(os.listdir(d)))
print(len(open(d + b"/OPENAI_API_KEY").read()))
"#;
    let told = python(&home, "CodeAnalyzer", script, &[]);
    let exceptions = [
        ("256 bytes", "ENAMETOOLONG"),
        ("4096 bytes", "ENAMETOOLONG"),
        ("NUL", "impossible"),
        ("environment", "ENOENT"),
        ("dot", "opened"),
        ("dot dot", "opened"),
    ];
    let lines: Vec<_> = told.lines().collect();
    assert_eq!(lines.len(), 23, "{told}");
    for line in &lines[..21] {
        let (what, got) = line.rsplit_once(' ').unwrap();
        let want = exceptions.iter().find(|(w, _)| *w == what).map_or("ENOENT", |(_, e)| e);
        assert_eq!(got, want, "{what}");
    }
    assert_eq!(lines[21..], ["[b'.identity', b'OPENAI_API_KEY', b'events']", "31"]);
    // What the names said is no part of the operator's log's structure.
    let log = std::fs::read_to_string(home.home().join("daemon.log")).unwrap();
    assert!(!log.contains('\u{1b}'), "{log}");
}

#[test]
fn a_second_listing_asks_for_no_extended_attributes() {
    if !may_mount() {
        return;
    }
    let home = Home::deployed();
    let list = |home: &Home| {
        let told = good(&home.agent("Deployer", "ls -laZ $CREDENTIALS_DIRECTORY | wc -l"));
        assert_eq!(told.trim(), "9", "{told}");
        requests(home)["getxattr"]
    };
    let first = list(&home);
    assert_eq!(list(&home), first);
    // The kernel asked once for each of getxattr and listxattr at most, and was told never again.
    assert!(first <= 2, "{first}");
}

// Indexers and backups open all they see, again and again.
#[test]
fn crawlers_are_served_and_their_refusals_are_few_records_with_the_whole_count() {
    if !may_mount() {
        return;
    }
    let home = Home::deployed();
    let crawl = r#"
import ctypes, errno, os, sys
libc = ctypes.CDLL(None, use_errno=True)
n = libc.inotify_init1(os.O_NONBLOCK)
root = sys.argv[1]
assert libc.inotify_add_watch(n, root.encode(), 0xfff) >= 0
for _ in range(100):
    for where, dirs, files in os.walk(root):
        for f in files:
            with open(os.path.join(where, f), "rb") as opened:
                opened.read()
for name in ("OPENAI_API_KEY", "DATABASE_URL", "id_deploy") * 100:
    try:
        open(os.path.join(root, name))
        print("opened", name)
    except FileNotFoundError:
        pass
print("crawled")
"#;
    let told = tools::stranger(&home, crawl, &[home.mount().to_str().unwrap()]);
    assert_eq!(told.trim(), "crawled");
    // A stranger's guesses name nothing that it knows: none of them is a secret's own event.
    assert_eq!(home.records("secret_accessed").len(), 0);
    let guesses = r#"
import os
for _ in range(300):
    try:
        open(os.environ["CREDENTIALS_DIRECTORY"] + "/DATABASE_URL")
        print("opened")
    except FileNotFoundError:
        pass
"#;
    assert_eq!(python(&home, "CodeAnalyzer", guesses, &[]), "");
    let denied = home.records("secret_denied");
    let of_agent: Vec<_> = denied.iter().filter(|r| r["agent"] == "CodeAnalyzer").collect();
    assert!(!of_agent.is_empty() && of_agent.len() <= 2, "{of_agent:?}");
    home.ok(&["down"]);
    // One alert of the agent's guesses, not one for each.
    let log = std::fs::read_to_string(home.home().join("daemon.log")).unwrap();
    assert!(log.matches("alert").count() <= 2, "{log}");
    // What was counted and not yet written is written at the end at the latest.
    let dir = home.home().join("audit");
    let mut total = 0;
    for file in strongroom::audit::files::files(&dir).unwrap() {
        let log = std::fs::read_to_string(file).unwrap();
        for line in log.lines() {
            let record: serde_json::Value = serde_json::from_str(line).unwrap();
            if record["event"] == "secret_denied" && record["agent"] == "CodeAnalyzer" {
                total += record["count"].as_u64().unwrap_or(1);
            }
        }
    }
    assert_eq!(total, 300);
}
