package machine

import (
	"bytes"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"
)

// clockTick is USER_HZ, 100 on every Linux architecture Go runs on.
const clockTick = time.Second / userHZ

// ParseStat reads the time that a process has used, fields 14 and 15 of /proc/<pid>/stat.
func ParseStat(data []byte) (CPUTime, error) {
	_, used, err := ParseGroupStat(data)
	return used, err
}

// ParseGroupStat reads pgrp, utime and stime, fields 5, 14 and 15 of /proc/<pid>/stat (proc_pid_stat(5)). Field 2
// is the command in parentheses and may hold anything, so fields are counted from its end.
func ParseGroupStat(data []byte) (group int, used CPUTime, err error) {
	end := bytes.LastIndexByte(data, ')')
	fields := strings.Fields(string(data[end+1:]))
	if end < 0 || len(fields) < 13 {
		return 0, CPUTime{}, errors.New("/proc/<pid>/stat: not as proc(5) describes it")
	}
	group, err0 := strconv.Atoi(fields[2])
	user, err1 := strconv.ParseUint(fields[11], 10, 64)
	system, err2 := strconv.ParseUint(fields[12], 10, 64)
	if err := errors.Join(err0, err1, err2); err != nil {
		return 0, CPUTime{}, fmt.Errorf("/proc/<pid>/stat: %w", err)
	}
	return group, CPUTime{User: time.Duration(user) * clockTick, System: time.Duration(system) * clockTick}, nil
}
