package xdp

import (
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"weft/xdp/bpf"
)

// programPrefix starts the names of our programs.
const programPrefix = "weft_"

// program is an XDP program on a device with its socket map. It is attached by a bpf_link: when the process dies, in
// whatever way, the kernel detaches it and the device's traffic goes back to the stack.
type program struct {
	prog    *ebpf.Program
	sockets *ebpf.Map
	link    link.Link
	mode    string // "native" or "generic"
	why     string // why not native; "" if it is
}

// insideProgram loads the program for the inside device, not yet attached.
func insideProgram(queues int) (*program, error) {
	var objects struct {
		Program *ebpf.Program `ebpf:"weft_inside"`
		Sockets *ebpf.Map     `ebpf:"sockets"`
	}
	if err := load(&objects, queues); err != nil {
		return nil, err
	}
	return &program{prog: objects.Program, sockets: objects.Sockets}, nil
}

// underlayProgram loads the program for the underlay device; only UDP to these addresses and ports goes to the sockets,
// and where traffic is steered only lanes' datagrams.
func underlayProgram(queues int, c Config) (*program, error) {
	var objects struct {
		Program   *ebpf.Program `ebpf:"weft_underlay"`
		Sockets   *ebpf.Map     `ebpf:"sockets"`
		Endpoints *ebpf.Map     `ebpf:"endpoints"`
	}
	if err := load(&objects, queues); err != nil {
		return nil, err
	}
	p := &program{prog: objects.Program, sockets: objects.Sockets}
	defer objects.Endpoints.Close() // the program keeps it
	first := uint8(0)               // any
	if c.Steer != nil {
		first = c.Steer.Type
	}
	for _, a := range c.Local {
		for port, value := range map[uint16]uint8{c.PlainPort: 0, c.Port: first} {
			if port == 0 {
				continue
			}
			key := bpf.XdpEndpoint{Addr: a.As16(), Port: [2]uint8{uint8(port >> 8), uint8(port)}}
			if err := objects.Endpoints.Put(key, value); err != nil {
				return nil, errors.Join(fmt.Errorf("put endpoint %s into the program's map: %w", a, err), p.close())
			}
		}
	}
	return p, nil
}

func load(objects any, queues int) error {
	spec, err := bpf.LoadXdp()
	if err != nil {
		return err
	}
	spec.Maps[bpf.XdpMapSockets].MaxEntries = uint32(queues)
	if err := spec.LoadAndAssign(objects, nil); err != nil {
		remedy := ""
		if errors.Is(err, unix.EPERM) {
			remedy = ": run as root or grant CAP_BPF and CAP_NET_ADMIN"
		}
		return fmt.Errorf("load the XDP program: %w%s", err, remedy)
	}
	return nil
}

// attach puts the program on a device that has none, in the calling thread's network namespace.
func (p *program) attach(ifindex int, device string, how Attach) error {
	if err := refuseForeign(ifindex, device); err != nil {
		return err
	}
	if how != Generic {
		err := p.attachAs(ifindex, link.XDPDriverMode, "native")
		if err == nil {
			return nil
		}
		if how == Native || occupied(err) {
			return fmt.Errorf("attach XDP to %s in native mode: %w", device, err)
		}
		p.why = "the driver refused native XDP: " + err.Error()
	} else {
		p.why = "generic mode was asked for"
	}
	if err := p.attachAs(ifindex, link.XDPGenericMode, "generic"); err != nil {
		return fmt.Errorf("attach XDP to %s in generic mode: %w (%s)", device, err, p.why)
	}
	return nil
}

func (p *program) attachAs(ifindex int, flags link.XDPAttachFlags, mode string) (err error) {
	p.link, err = link.AttachXDP(link.XDPOptions{Program: p.prog, Interface: ifindex, Flags: flags})
	p.mode = mode
	return err
}

// occupied says whether an attach failed because somebody else was quicker.
func occupied(err error) bool { return errors.Is(err, unix.EBUSY) || errors.Is(err, unix.EEXIST) }

// refuseForeign returns an error if the device has an XDP program. One of ours is a predecessor's who was killed: it
// goes as soon as the kernel has cleaned up behind the process.
func refuseForeign(ifindex int, device string) error {
	for deadline := time.Now().Add(bindPatience); ; time.Sleep(10 * time.Millisecond) {
		l, err := netlink.LinkByIndex(ifindex)
		if err != nil {
			return fmt.Errorf("find %s: %w", device, err)
		}
		x := l.Attrs().Xdp
		if x == nil || !x.Attached {
			return nil
		}
		name := programName(x.ProgId)
		if !strings.HasPrefix(name, programPrefix) {
			return fmt.Errorf("%s has an XDP program of somebody else (id %d, name %q), which is never replaced: "+
				"remove it with `ip link set dev %s xdp off`, choose another interface, or use a mode without AF_XDP",
				device, x.ProgId, name, device)
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("%s is in use by another weft (XDP program id %d, name %q): stop that one first",
				device, x.ProgId, name)
		}
	}
}

// programName is the program's name in the kernel, "" if it has none or is gone.
func programName(id uint32) string {
	p, err := ebpf.NewProgramFromID(ebpf.ProgramID(id))
	if err != nil {
		return ""
	}
	defer p.Close()
	info, err := p.Info()
	if err != nil {
		return ""
	}
	return info.Name
}

// serve directs a receive queue's frames to a socket.
func (p *program) serve(queue, fd int) error {
	if err := p.sockets.Put(uint32(queue), uint32(fd)); err != nil {
		return fmt.Errorf("put the socket of queue %d into the program's map: %w", queue, err)
	}
	return nil
}

// close detaches and unloads. Idempotent.
func (p *program) close() error {
	var errs []error
	if p.link != nil {
		errs = append(errs, p.link.Close())
		p.link = nil
	}
	return errors.Join(append(errs, p.prog.Close(), p.sockets.Close())...)
}
