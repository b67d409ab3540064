# ESPnet's path.sh, which sources this file last, leaves one thread to a job; on a CPU the one
# training job may have two.
export OMP_NUM_THREADS=2
