package machine

import (
	"os"
	"path/filepath"
	"runtime"
	"strings"

	"golang.org/x/sys/unix"

	"weft/perf/result"
)

// Fingerprint describes this machine. What it cannot read is empty: that stops no measurement.
func Fingerprint(version, congestion string) result.Host {
	return result.Host{
		Kernel:        kernelRelease(),
		CPU:           cpuModel(),
		Cores:         runtime.NumCPU(),
		Mitigations:   mitigations("/sys/devices/system/cpu/vulnerabilities"),
		Go:            runtime.Version(),
		Weft:          version,
		TCPCongestion: congestion,
	}
}

func kernelRelease() string {
	var u unix.Utsname
	if unix.Uname(&u) != nil {
		return ""
	}
	return unix.ByteSliceToString(u.Release[:])
}

func cpuModel() string {
	data, err := os.ReadFile("/proc/cpuinfo")
	if err != nil {
		return ""
	}
	for line := range strings.Lines(string(data)) {
		key, value, _ := strings.Cut(line, ":")
		if strings.TrimSpace(key) == "model name" {
			return strings.TrimSpace(value)
		}
	}
	return runtime.GOARCH
}

// mitigations lists what the kernel does about the processor's flaws, "none needed" where it has
// none of them.
func mitigations(dir string) string {
	files, err := filepath.Glob(dir + "/*")
	if err != nil || len(files) == 0 {
		return ""
	}
	var found []string
	for _, f := range files {
		data, err := os.ReadFile(f)
		text := strings.TrimSpace(string(data))
		if err == nil && text != "Not affected" {
			found = append(found, filepath.Base(f)+": "+text)
		}
	}
	if len(found) == 0 {
		return "none needed"
	}
	return strings.Join(found, "; ")
}
