#!/bin/sh
# Lays out a root file system in FOLDER/root that holds the server and nothing else: the stripped binary, the shared
# libraries it loads, certificates for downloads, and the names of the user; and in FOLDER/models an empty folder for
# models. The image is built from both, and tests/deploy runs them.
# Usage: deploy/bundle.sh BINARY FOLDER
# Needs glibc's ldd, and objcopy or strip from binutils. The libraries are those of the machine it runs on.
set -eu

binary=$1
folder=$2/root
here=$(cd "$(dirname "$0")" && pwd)
name=predict-otron-9000

mkdir -p "$folder/usr/bin" "$folder/etc/ssl/certs" "$folder/usr/share/doc/$name" "$2/models"
strip -o "$folder/usr/bin/$name" "$binary"
chmod 755 "$folder/usr/bin/$name"

# Paths stay as they are: the loader's path is a part of the binary, and glibc looks for libraries under the path of
# its own architecture.
copy_library() {
  mkdir -p "$folder$(dirname "$1")"
  # Links are followed: the loader asks for libm.so.6, not for the file behind it.
  cp -L "$1" "$folder$1"
}
ldd "$binary" | sed -n 's|^[^/]*\(/[^ ]*\) (0x[0-9a-f]*)$|\1|p' | while read -r library; do
  copy_library "$library"
done
# ONNX Runtime is loaded at run time, if a model needs it, and needs these.
libraries=$(dirname "$(ldd "$binary" | sed -n 's|.*=> \(.*/libc\.so\.6\) .*|\1|p')")
for library in libstdc++.so.6 libdl.so.2 libpthread.so.0 librt.so.1; do
  for path in "$libraries/$library" "/usr$libraries/$library"; do
    # Under /lib, where the merged /usr of this machine shows everything, so that the image needs no link.
    if [ -e "$path" ] && [ ! -e "$folder$libraries/$library" ]; then
      cp -L "$path" "$folder$libraries/$library"
    fi
  done
done

# The server checks the hub's certificate against these. Without them it works offline only.
if [ -e /etc/ssl/certs/ca-certificates.crt ]; then
  cp -L /etc/ssl/certs/ca-certificates.crt "$folder/etc/ssl/certs/"
fi
# The user has no home and no shell. Kubernetes' runAsNonRoot wants the number, which the image names.
echo "$name:x:65532:65532::/nonexistent:/sbin/nologin" >"$folder/etc/passwd"
echo "$name:x:65532:" >"$folder/etc/group"
# Compiled into glibc since 2.34, so no further library is loaded.
echo "hosts: files dns" >"$folder/etc/nsswitch.conf"
cp "$here/../LICENSE-MIT" "$here/../LICENSE-APACHE" "$folder/usr/share/doc/$name/"
