#!/usr/bin/env bash
# A Slurm cluster of this machine alone, for tests, in a directory of its own.
# Needs root and Debian's packages slurm-wlm and munge.
#
#   bring_up.sh up DIRECTORY CPUS   starts it; export SLURM_CONF=DIRECTORY/slurm.conf
#   bring_up.sh down DIRECTORY      ends it
set -euo pipefail
action=$1 directory=$2

free_ports() {
  python3 - <<'END'
import socket
sockets = [socket.create_server(("", 0)) for _ in range(2)]
print(*(sock.getsockname()[1] for sock in sockets))
END
}

configure() {
  local host ports
  host=$(hostname -s)
  read -ra ports < <(free_ports)
  mkdir -p "$directory"/{state,spool}
  # Credentials are short-lived: a requeued job waits until its own is void.
  cat >"$directory/slurm.conf" <<END
ClusterName=xlj
SlurmctldHost=$host(127.0.0.1)
SlurmctldPort=${ports[0]}
SlurmdPort=${ports[1]}
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket=$directory/munge.socket,cred_expire=5
CredType=cred/munge
MpiDefault=none
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SchedulerParameters=sched_interval=2,batch_sched_delay=1
ReturnToService=2
KillWait=10
StateSaveLocation=$directory/state
SlurmdSpoolDir=$directory/spool
SlurmctldPidFile=$directory/slurmctld.pid
SlurmdPidFile=$directory/slurmd.pid
SlurmctldLogFile=$directory/slurmctld.log
SlurmdLogFile=$directory/slurmd.log
NodeName=$host NodeAddr=127.0.0.1 CPUs=$1 State=UNKNOWN
PartitionName=xlj Nodes=$host Default=YES MaxTime=INFINITE State=UP
END
}

up() {
  configure "$1"
  head -c 1024 /dev/urandom >"$directory/munge.key"
  chmod 400 "$directory/munge.key"
  munged --force --key-file="$directory/munge.key" \
    --socket="$directory/munge.socket" --pid-file="$directory/munged.pid" \
    --log-file="$directory/munged.log" --seed-file="$directory/munge.seed"
  export SLURM_CONF=$directory/slurm.conf
  slurmctld -c
  slurmd -c -f "$SLURM_CONF"
  for ((i = 0; i < 100; i++)); do
    if sinfo --noheader --states=idle --format=%N 2>/dev/null | grep -q .; then
      return
    fi
    sleep 0.2
  done
  tail -n 20 "$directory"/*.log >&2
  return 1
}

down() {
  export SLURM_CONF=$directory/slurm.conf
  scancel --user=root || true
  for ((i = 0; i < 100; i++)); do
    squeue --noheader | grep -q . || break
    sleep 0.2
  done
  for daemon in slurmd slurmctld munged; do
    if [[ -s $directory/$daemon.pid ]]; then
      kill "$(<"$directory/$daemon.pid")" || true
    fi
  done
}

case $action in
  up) up "$3" ;;
  down) down ;;
  *) sed -n 's/^#   //p' "$0" >&2; exit 2 ;;
esac
