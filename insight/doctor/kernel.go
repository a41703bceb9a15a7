package doctor

import (
	"fmt"
	"net/netip"
	"os"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"weft/catalog/mode"
	"weft/internal/kernel"
	"weft/internal/sock"
)

// privileges looks for the one capability that everything needs.
func privileges() Finding {
	const name = "privileges"
	data, err := os.ReadFile("/proc/self/status")
	if err != nil {
		return Finding{name, Note, err.Error(), "mount /proc"}
	}
	for line := range strings.Lines(string(data)) {
		if text, found := strings.CutPrefix(line, "CapEff:"); found {
			bits, err := strconv.ParseUint(strings.TrimSpace(text), 16, 64)
			if err == nil && bits&(1<<unix.CAP_NET_ADMIN) != 0 {
				return Finding{name, OK, "CAP_NET_ADMIN", ""}
			}
		}
	}
	return Finding{name, Missing, "CAP_NET_ADMIN is lacking", "run as root or grant it; what follows is what can be seen without"}
}

// Abilities tries what the modes of this build need from the kernel.
func Abilities(p Subject) (list []Finding) {
	var all []kernel.Ability
	for _, m := range p.Modes {
		for _, n := range m.Needs {
			if !slices.Contains(all, kernel.Ability(n)) {
				all = append(all, kernel.Ability(n))
			}
		}
	}
	for _, a := range all {
		var needed []string
		for _, m := range p.Modes {
			if slices.Contains(m.Needs, string(a)) {
				needed = append(needed, m.Name)
			}
		}
		f := Finding{Name: a.String(), Level: OK, Found: "works"}
		if err := a.Probe(); err != nil {
			f.Level, f.Found, f.Remedy = Note, fmt.Sprintf("%v: modes %s cannot run here", err, strings.Join(needed, ", ")), a.Remedy()
			if p.Config != nil && slices.ContainsFunc(p.Config.Modes, func(m mode.Mode) bool { return slices.Contains(needed, m.Name) }) {
				f.Level = Missing
			}
		}
		list = append(list, f)
	}
	return list
}

// socketBuffers tries to get as large buffers as the daemon wants.
func socketBuffers() Finding {
	const name = "socket buffers"
	s, err := sock.Source(netip.IPv4Unspecified())
	if err != nil {
		return Finding{name, Wrong, err.Error(), "raise the limit of open files"}
	}
	defer s.Close()
	if err := s.ReceiveBuffer(); err != nil {
		return Finding{name, Note, err.Error(), fmt.Sprintf("sysctl -w net.core.rmem_max=%d net.core.wmem_max=%[1]d, or grant CAP_NET_ADMIN", sock.Buffer)}
	}
	return Finding{name, OK, fmt.Sprintf("%d bytes", sock.Buffer), ""}
}
