#!/bin/sh
# Seconds per step of four processes with the gradients all-reduced during and after the backward pass (dist.overlap), two on each of two
# network namespaces with a link of RATE between them. In turns; medians over the steps of each run. Needs root, ip and tc.
# usage: bench/overlap.sh IMAGES [RATE] [ROUNDS]     such as: bench/overlap.sh DIR 2gbit 3; about a minute a round and arm
set -eu
data=$(realpath "$1")
rate=${2:-2gbit}
rounds=${3:-3}
cd "$(dirname "$0")/.."
program=$(realpath "${SIMCLR:-target/release/simclr}")
work=$(mktemp -d)
a=simclr-a-$$ b=simclr-b-$$
trap 'ip netns del $a 2>/dev/null; ip netns del $b 2>/dev/null; rm -rf "$work"' EXIT

ip netns add "$a"
ip netns add "$b"
ip link add card netns "$a" type veth peer name card netns "$b"
number=1
for host in "$a" "$b"; do
    ip -n "$host" addr add "10.213.78.$number/24" dev card
    ip -n "$host" link set card up
    ip -n "$host" link set lo up
    number=$((number + 1))
done

# shape RATE|none
shape() {
    for host in "$a" "$b"; do
        ip netns exec "$host" tc qdisc del dev card root 2>/dev/null || true
        [ "$1" = none ] || ip netns exec "$host" tc qdisc add dev card root tbf rate "$1" burst 1mb latency 100ms
    done
}

# on HOST NODE_RANK ARGUMENTS
on() {
    host=$1 node=$2
    shift 2
    ip netns exec "$host" "$program" launch -n 2 --nodes 2 --node-rank "$node" --master 10.213.78.1 "$@"
}

# arm NAME RATE OVERLAP: prints the median seconds of a step.
arm() {
    shape "$2"
    run=$work/$1
    set -- pretrain --data "$data" --run "$run" --epochs "${EPOCHS:-0.25}" --batch 128 --encoder resnet18 --image-size 32 --device cpu \
        --threads 1 --set train.knn_every=0 train.health_every=100000 dist.overlap="$3"
    on "$b" 1 "$@" >"$run.1.log" 2>&1 &
    on "$a" 0 "$@" >"$run.0.log" 2>&1 || { cat "$run.0.log" >&2; exit 1; }
    wait
    python3 - "$run/metrics.jsonl" <<'END'
import json, statistics, sys
steps = [step for step in map(json.loads, open(sys.argv[1])) if "images_per_second" in step]
seconds = [128 / step["images_per_second"] for step in steps[3:]]
print(f"{statistics.median(seconds):.3f} ({min(seconds):.3f} to {max(seconds):.3f}, {len(seconds)} steps)")
END
}

date -u '+%F %T UTC'
lscpu | grep 'Model name'
round=1
while [ "$round" -le "$rounds" ]; do
    echo "no limit, after    $(arm "free-$round" none false)"
    echo "$rate, after    $(arm "after-$round" "$rate" false)"
    echo "$rate, during   $(arm "during-$round" "$rate" true)"
    round=$((round + 1))
done
