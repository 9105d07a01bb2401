"""A Linux guest without hardware help: Debian's cloud kernel, busybox, one disk over NBD, a serial line to talk."""

import glob
import gzip
import os
import platform
import select
import shutil
import subprocess
import time
from pathlib import Path

from story import Failed, end, skip, want

META_PACKAGE = f"linux-image-cloud-{ {'x86_64': 'amd64'}.get(platform.machine(), platform.machine()) }"
# In the order in which they need each other.
MODULES = ("virtio_ring", "virtio", "virtio_pci_modern_dev", "virtio_pci_legacy_dev", "virtio_pci", "virtio_blk")
# For a guest that is an NBD client itself.
CLIENT_MODULES = ("failover", "net_failover", "virtio_net", "nbd")
CACHE = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "cdp-tests"
BUSYBOX = "/bin/busybox"

INIT_RAMDISK = """\
#!/bin/busybox sh
/bin/busybox mkdir -p /proc /sys /dev /root
/bin/busybox mount -t devtmpfs dev /dev
for name in %s; do /bin/busybox insmod /$name.ko; done
for i in 1 2 3 4 5 6 7 8 9 10; do [ -b /dev/vda ] && break; /bin/busybox sleep 0.2; done
if /bin/busybox mount -t ext4 /dev/vda /root && [ -x /root/sbin/init ] && /root/sbin/init works; then
    exec /bin/busybox switch_root /root /sbin/init
fi
echo "guest: no system on this disk"
/bin/busybox poweroff -f
"""

INIT_DISK = """\
#!/bin/sh
[ "$1" = works ] && exit 0
mount -t proc proc /proc
mount -t devtmpfs dev /dev
echo boot >>/var/boots
sync
stty -echo
echo "guest: boot $(wc -l </var/boots), note: $(head -n 1 /var/note)."
echo "guest: ready"
while read -r line; do
    sh -c "$line"
    echo "guest: done $?"
done
"""


def kernel(story):
    """The kernel and its modules, fetched once by the package manager. Gives a directory."""
    directory = CACHE / "kernel"
    files = ["vmlinuz", *(f"{name}.ko" for name in MODULES + CLIENT_MODULES)]
    if all((directory / name).exists() for name in files):
        return directory
    fetch = story.dir / "kernel"
    fetch.mkdir()
    if not _download(story, fetch):
        story.run("apt-get", "-o", "DPkg::Lock::Timeout=60", "update", "-qq", timeout=90, check=False)
        if not _download(story, fetch):
            skip(f"{META_PACKAGE} cannot be had")
    (package,) = glob.glob(f"{fetch}/*.deb")
    story.run("dpkg-deb", "-x", package, fetch / "x")
    made = fetch / "made"
    made.mkdir()
    shutil.copy(glob.glob(f"{fetch}/x/boot/vmlinuz-*")[0], made / "vmlinuz")
    for name in MODULES + CLIENT_MODULES:
        shutil.copy(next((fetch / "x").rglob(f"{name}.ko")), made)
    CACHE.mkdir(parents=True, exist_ok=True)
    shutil.rmtree(directory, ignore_errors=True)
    shutil.move(made, directory)
    return directory


def _download(story, into):
    """The package that the meta package stands for today."""
    shown = story.run("apt-cache", "depends", "--important", META_PACKAGE, check=False).stdout
    names = [line.split()[-1] for line in shown.splitlines() if "linux-image-" in line and line.lstrip().startswith("Depends")]
    return bool(names) and story.run("apt-get", "download", "-qq", names[0], cwd=into, timeout=90, check=False).returncode == 0


def _busybox_tree(directory):
    """/bin with everything that busybox is."""
    (directory / "bin").mkdir(parents=True)
    shutil.copy(BUSYBOX, directory / "bin/busybox")
    applets = subprocess.run([BUSYBOX, "--list"], capture_output=True, text=True, check=True).stdout.split()
    for applet in applets:
        if applet != "busybox":
            (directory / "bin" / applet).symlink_to("busybox")


def _script(path, text):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    path.chmod(0o755)


def initrd(story, kernel_directory):
    """Enough to find the disk. Gives the file."""
    tree = story.dir / "initrd"
    (tree / "bin").mkdir(parents=True)
    shutil.copy(BUSYBOX, tree / "bin/busybox")
    (tree / "bin/sh").symlink_to("busybox")
    for name in MODULES:
        shutil.copy(kernel_directory / f"{name}.ko", tree)
    _script(tree / "init", INIT_RAMDISK % " ".join(MODULES))
    names = "\n".join(str(path.relative_to(tree)) for path in sorted(tree.rglob("*")))
    packed = subprocess.run([BUSYBOX, "cpio", "-o", "-H", "newc"], input=names.encode(), cwd=tree, capture_output=True, check=True)
    file = story.dir / "initrd.gz"
    file.write_bytes(gzip.compress(packed.stdout, 1))
    return file


def _with_libraries(program, tree):
    """A program of this machine and what it is linked with, at the places where they are here."""
    linked = subprocess.run(["ldd", program], capture_output=True, text=True, check=True).stdout
    for word in [program, *linked.split()]:
        if word.startswith("/"):
            place = tree / word.lstrip("/")
            place.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(os.path.realpath(word), place)


def root_image(story, size, kernel_directory=None, programs=()):
    """A disk image with a small system on ext4; with a kernel's directory its client modules are in /lib, and the
    programs are there. Gives the file."""
    tree = story.dir / "root"
    _busybox_tree(tree)
    for name in ("proc", "dev", "sys", "tmp", "var"):
        (tree / name).mkdir()
    (tree / "var/note").write_text("as installed\n")
    (tree / "var/boots").touch()
    _script(tree / "sbin/init", INIT_DISK)
    if kernel_directory:
        (tree / "lib").mkdir()
        for name in CLIENT_MODULES:
            shutil.copy(kernel_directory / f"{name}.ko", tree / "lib")
    for program in programs:
        _with_libraries(shutil.which(program), tree)
    image = story.dir / "root.img"
    with open(image, "wb") as file:
        file.truncate(size)
    story.run("mkfs.ext4", "-q", "-d", tree, image)
    return image


class Guest:
    """A running machine."""

    def __init__(self, story, kernel_directory, ramdisk, disk, more=(), driver="nbd"):
        self.text = ""
        self.process = subprocess.Popen(
            [
                "qemu-system-x86_64", "-accel", "tcg", "-machine", "q35,usb=off", "-cpu", "max", "-m", "256",
                "-nodefaults", "-display", "none", "-no-reboot", "-serial", "stdio",
                "-kernel", str(kernel_directory / "vmlinuz"), "-initrd", str(ramdisk),
                # No self-tests and no mitigations: an emulated processor has time for neither.
                "-append", "console=ttyS0 quiet panic=-1 mitigations=off random.trust_cpu=on tsc=reliable no_timer_check",
                "-blockdev", f"driver={driver},node-name=disk,{disk}", "-device", "virtio-blk-pci,drive=disk", *more,
            ],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=story.log_file("guest"), cwd="/",
        )
        story.on_exit(end, self.process, 3)
        self.log = story.log_file("guest")

    def wait_for(self, text, seconds=90):
        """Until the guest prints it. Gives what it printed on the way."""
        until = time.monotonic() + seconds
        while text not in self.text:
            left = until - time.monotonic()
            want(left > 0, f"the guest does not say {text!r} within {seconds} s")
            if select.select([self.process.stdout], [], [], left)[0]:
                piece = os.read(self.process.stdout.fileno(), 65536)
                if not piece:
                    raise Failed(f"the guest ended ({self.process.wait()}) and did not say {text!r}")
                self.log.write(piece)
                self.text += piece.decode(errors="replace")
        said, self.text = self.text.split(text, 1)
        return said

    def up(self, what):
        """Until it takes commands; `what` has to be among what it says about itself."""
        said = self.wait_for("guest: ready")
        want(f"guest: {what}." in said, f"the guest is not at {what!r}: {said[-300:]}")

    def do(self, command, seconds=60):
        """Runs a command in the guest; gives what it printed."""
        self.process.stdin.write(command.encode() + b"\n")
        self.process.stdin.flush()
        said = self.wait_for("guest: done ", seconds)
        code = self.wait_for("\n", 10).strip()
        want(code == "0", f"in the guest, {command!r} ended with {code}: {said[-500:]}")
        return said.replace("\r", "").lstrip("\n")

    def off(self):
        """Without a warning: what it did not sync is its own loss."""
        self.process.stdin.write(b"poweroff -f\n")
        self.process.stdin.flush()
        self.process.wait(30)
