"""A job of several processes on one machine: started, shown, ended as one."""
