#!/usr/bin/env bash
# A SLURM of one node for one command: bash tests/bids/slurm.sh COMMAND...
# Needs Debian's slurm-wlm and munge, and root. No cgroups: processes are found in /proc.
set -euo pipefail
work=$(mktemp -d)
node=$(hostname -s)
pids=()

stop() {
  for pid in "${pids[@]}"; do kill "$pid" 2>/dev/null || true; done
  wait 2>/dev/null || true
  rm -rf "$work"
}
trap stop EXIT

chmod 755 "$work"
mkdir -p "$work"/{munge,state,spool}
chmod 700 "$work/munge"
head -c 1024 /dev/urandom >"$work/munge/key"
chmod 400 "$work/munge/key"
cat >"$work/slurm.conf" <<CONF
ClusterName=one
SlurmctldHost=$node(127.0.0.1)
SlurmUser=root
AuthType=auth/munge
AuthInfo=socket=$work/munge/socket
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
StateSaveLocation=$work/state
SlurmdSpoolDir=$work/spool
SlurmctldPidFile=$work/slurmctld.pid
SlurmdPidFile=$work/slurmd.pid
SlurmctldLogFile=$work/slurmctld.log
SlurmdLogFile=$work/slurmd.log
ReturnToService=2
MpiDefault=none
NodeName=$node NodeAddr=127.0.0.1 CPUs=$(getconf _NPROCESSORS_ONLN) RealMemory=$(awk '/MemTotal/ {print int($2 / 1024)}' /proc/meminfo)
PartitionName=all Nodes=$node Default=YES MaxTime=INFINITE State=UP
CONF
export SLURM_CONF=$work/slurm.conf

/usr/sbin/munged --foreground --force --key-file "$work/munge/key" --socket "$work/munge/socket" \
  --pid-file "$work/munge/pid" --seed-file "$work/munge/seed" 2>"$work/munged.log" &
pids+=($!)
until [ -S "$work/munge/socket" ]; do sleep 0.1; done
chmod 711 "$work/munge"
/usr/sbin/slurmctld -D 2>/dev/null &  # its log is in the folder
pids+=($!)
/usr/sbin/slurmd -D -N "$node" 2>/dev/null &
pids+=($!)
for _ in $(seq 100); do
  if sinfo -h -o %T 2>/dev/null | grep -q idle; then break; fi
  sleep 0.3
done
if ! sinfo -h -o %T | grep -q idle; then
  cat "$work"/slurm*.log "$work/munged.log" >&2
  exit 1
fi
sinfo
"$@"
