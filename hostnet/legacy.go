package hostnet

import (
	"encoding/binary"
	"os"
	"slices"
	"strings"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Of linux/netfilter_ipv4/ip_tables.h, and the same in ip6_tables.h.
const (
	getInfo    = 64 // IPT_SO_GET_INFO
	getEntries = 65 // IPT_SO_GET_ENTRIES

	legacyForward = 2  // NF_INET_FORWARD
	legacyHead    = 40 // of struct ipt_get_entries: name, size, and the gap before the first entry
	legacyTarget  = 32 // struct xt_entry_target, with the verdict behind it
)

// legacyFamily is what one IP version's tables have of their own.
type legacyFamily struct {
	name, tables  string
	domain, level int
	targetOffset  int // of struct ipt_entry
}

var legacyFamilies = []legacyFamily{
	{"iptables-legacy", "ip_tables_names", unix.AF_INET, unix.IPPROTO_IP, 88},
	{"ip6tables-legacy", "ip6_tables_names", unix.AF_INET6, unix.IPPROTO_IPV6, 140},
}

// Legacy names the commands whose FORWARD chain may drop packets: iptables-legacy, ip6tables-legacy. nftables does not know of their rules. A chain is meant that
// has any, or a policy that drops.
func (h *Host) Legacy() (list []string) {
	_ = h.here(func() error {
		for _, f := range legacyFamilies {
			names, err := os.ReadFile("/proc/thread-self/net/" + f.tables) // to ask for a table that is not there makes it
			if err == nil && slices.Contains(strings.Fields(string(names)), "filter") && f.stops() {
				list = append(list, f.name)
			}
		}
		return nil
	})
	return list
}

// legacyInfo is struct ipt_getinfo.
type legacyInfo struct {
	name             [32]byte
	hooks            uint32
	entry, underflow [5]uint32
	entries, size    uint32
}

// stops says whether FORWARD has rules, or a policy that drops. What cannot be read may do either.
func (f legacyFamily) stops() bool {
	fd, err := unix.Socket(f.domain, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.IPPROTO_RAW)
	if err != nil {
		return true
	}
	defer unix.Close(fd)
	get := func(option int, p unsafe.Pointer, size uint32) bool {
		_, _, errno := unix.Syscall6(unix.SYS_GETSOCKOPT, uintptr(fd), uintptr(f.level), uintptr(option), uintptr(p), uintptr(unsafe.Pointer(&size)), 0)
		return errno == 0
	}
	info := legacyInfo{}
	copy(info.name[:], "filter")
	if !get(getInfo, unsafe.Pointer(&info), uint32(unsafe.Sizeof(info))) || info.size > 1<<24 {
		return true
	}
	if info.entry[legacyForward] != info.underflow[legacyForward] {
		return true
	}
	b := make([]byte, legacyHead+int(info.size))
	copy(b, "filter")
	binary.NativeEndian.PutUint32(b[32:], info.size)
	if !get(getEntries, unsafe.Pointer(&b[0]), uint32(len(b))) {
		return true
	}
	return f.policyDrops(b[legacyHead:], int(info.underflow[legacyForward]))
}

// policyDrops reads the verdict of a chain's last entry, which has a standard target (struct xt_standard_target): -1 is NF_DROP.
func (f legacyFamily) policyDrops(table []byte, at int) bool {
	if at < 0 || len(table) < at+f.targetOffset+2 {
		return true
	}
	verdict := at + int(binary.NativeEndian.Uint16(table[at+f.targetOffset:])) + legacyTarget
	if len(table) < verdict+4 {
		return true
	}
	return int32(binary.NativeEndian.Uint32(table[verdict:])) == -1
}
