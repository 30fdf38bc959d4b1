#!/usr/bin/env bash
# Hosts on this machine: network namespaces with a name and an address each,
# plugged into a switch in a namespace of its own. Needs root and iproute2.
#
#   hosts.sh up PREFIX COUNT          hosts PREFIX0, ...: 10.83.0.1, ...
#   hosts.sh run PREFIX HOST COMMAND  runs a command on one of them
#   hosts.sh cut PREFIX HOST          unplugs its cable
#   hosts.sh mend PREFIX HOST         plugs it in again
#   hosts.sh down PREFIX COUNT        removes them
set -euo pipefail
action=$1 prefix=$2
switch=$prefix-switch

up() {
  ip netns add "$switch"
  ip -n "$switch" link add bridge type bridge
  ip -n "$switch" link set bridge up
  for ((i = 0; i < $1; i++)); do
    ip netns add "$prefix$i"
    ip -n "$prefix$i" link set lo up
    ip -n "$prefix$i" link add eth0 type veth peer name "port$i" netns "$switch"
    ip -n "$prefix$i" addr add "10.83.0.$((i + 1))/24" dev eth0
    ip -n "$prefix$i" link set eth0 up
    ip -n "$switch" link set "port$i" master bridge up
    mkdir -p "/etc/netns/$prefix$i" # `ip netns exec` puts it over /etc
    {
      echo "127.0.0.1 localhost"
      for ((j = 0; j < $1; j++)); do echo "10.83.0.$((j + 1)) $prefix$j"; done
    } >"/etc/netns/$prefix$i/hosts"
  done
}

down() {
  for ((i = 0; i < $1; i++)); do
    ip netns del "$prefix$i" || true
    rm -rf "/etc/netns/$prefix$i"
  done
  ip netns del "$switch" || true
}

run() {
  local host=$prefix$1
  shift
  exec ip netns exec "$host" unshare --uts \
    sh -c 'hostname "$0" && exec "$@"' "$host" "$@"
}

case $action in
  up) up "$3" ;;
  run) run "${@:3}" ;;
  cut) ip -n "$switch" link set "port$3" down ;;
  mend) ip -n "$switch" link set "port$3" up ;;
  down) down "$3" ;;
  *) sed -n 's/^#   //p' "$0" >&2; exit 2 ;;
esac
