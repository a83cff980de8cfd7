# Sourced by benchmarks: unpacks the first images of every class of cifar10-jpeg.tar.
# usage: cifar10_subset ARCHIVE IMAGES-PER-CLASS FOLDER    (test images: 1000 a class from more than 1000, else half as many)
cifar10_subset() {
    [ -d "$3" ] && return
    rm -rf "$3.partial" && mkdir -p "$3.partial"
    for part in "train $2" "test $(($2 > 1000 ? 1000 : $2 / 2))"; do
        # The first images of each class folder.
        tar -tf "$1" | grep "^${part% *}/.*jpg" | sort | awk -F/ -v n="${part#* }" '++seen[$2] <= n' >"$3.partial/list"
        tar -xf "$1" -C "$3.partial" -T "$3.partial/list"
    done
    rm "$3.partial/list"
    mv "$3.partial" "$3"
}
