//! The file under full disks, kills, rotation and several writers.
