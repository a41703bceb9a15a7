package pods

import (
	"bytes"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"hash/fnv"
	"io"
	"os"
	"slices"

	"golang.org/x/sys/unix"
)

// bbolt maps its file into memory and believes what is in there: a file that ends too early is a SIGBUS, a page that points elsewhere a
// panic on a goroutine of its own, and an empty file is a new store. So the file is read through here first, by its format
// (go.etcd.io/bbolt, version 2): pages of equal size; 0 and 1 hold the store's root, the newer valid one counts; a page is a
// header (id 8, flags 2, count 2, overflow 4 bytes) and elements, of a leaf (flags, position, key and value length, 4 bytes each) or a
// branch (position, key length, 4 bytes each, page 8); a bucket is a value: root page, sequence, and where the root is 0 its page within.
const (
	boltMagic, boltVersion = 0xED0CDAED, 2
	pageHeader             = 16
	elementSize            = 16 // of both kinds
	metaSize               = 64
	bucketHeader           = 16

	branchPage, leafPage, freelistPage = 1, 2, 16
	bucketLeaf                         = 1

	boltDeepest = 32
	boltLargest = 1 << 30 // bytes; a store has some hundred per pod
)

var errNotItself = errors.New("it is not that of its key")

// damage says what is wrong with the store's file, nil where it is sound or not there. records are those that can be read of it nevertheless; some of
// them may be of pods that are long gone. It must be asked before the file is opened.
func damage(file string) (records []*record, err error) {
	f, err := os.Open(file)
	if errors.Is(err, os.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, nil // opening it will tell
	}
	defer f.Close()
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		return nil, nil // opening it will tell who
	}
	data, err := io.ReadAll(io.LimitReader(f, boltLargest))
	if err != nil {
		return nil, fmt.Errorf("it cannot be read: %w", err)
	}
	defer func() {
		if p := recover(); p != nil { // of this reader: a position outside of what there is
			err = fmt.Errorf("it is not as a store is: %v", p)
		}
		if err != nil {
			records = scrape(data)
		}
	}()
	return nil, checkBolt(data)
}

type boltFile struct {
	data     []byte
	pageSize uint64
	last     uint64 // the first page that is not there
	seen     map[uint64]bool
}

// checkBolt reads a whole file.
func checkBolt(data []byte) error {
	if len(data) == 0 {
		return errors.New("it is empty")
	}
	var best []byte
	var txid uint64
	sizes := []int{os.Getpagesize(), 4096, 8192, 16384, 65536}
	for _, at := range append([]int{0}, sizes...) {
		if at+pageHeader+metaSize > len(data) {
			continue
		}
		m := data[at+pageHeader : at+pageHeader+metaSize]
		sum := fnv.New64a()
		sum.Write(m[:56])
		if binary.NativeEndian.Uint32(m) != boltMagic || binary.NativeEndian.Uint32(m[4:]) != boltVersion || binary.NativeEndian.Uint64(m[56:]) != sum.Sum64() {
			continue
		}
		if id := binary.NativeEndian.Uint64(m[48:]); best == nil || id > txid {
			best, txid = m, id
		}
	}
	if best == nil {
		return errors.New("it has no valid beginning")
	}
	b := &boltFile{data: data, pageSize: uint64(binary.NativeEndian.Uint32(best[8:])), last: binary.NativeEndian.Uint64(best[40:]), seen: map[uint64]bool{}}
	if b.pageSize < 512 || b.pageSize > 1<<16 || b.last > boltLargest || b.last*b.pageSize > uint64(len(data)) {
		return fmt.Errorf("it ends after %d bytes, where %d pages of %d should be", len(data), b.last, b.pageSize)
	}
	if err := b.tree(binary.NativeEndian.Uint64(best[16:]), nil, 0); err != nil {
		return err
	}
	return b.freelist(binary.NativeEndian.Uint64(best[32:]))
}

func (b *boltFile) page(id uint64) (page []byte, flags uint16, count int, err error) {
	if id < 2 || id >= b.last {
		return nil, 0, 0, fmt.Errorf("page %d is none", id)
	}
	head := b.data[id*b.pageSize:]
	flags, count = binary.NativeEndian.Uint16(head[8:]), int(binary.NativeEndian.Uint16(head[10:]))
	more := uint64(binary.NativeEndian.Uint32(head[12:]))
	if binary.NativeEndian.Uint64(head) != id || id+more >= b.last {
		return nil, 0, 0, fmt.Errorf("page %d is another", id)
	}
	for p := id; p <= id+more; p++ {
		if b.seen[p] {
			return nil, 0, 0, fmt.Errorf("page %d is there twice", p)
		}
		b.seen[p] = true
	}
	return head[:(more+1)*b.pageSize], flags, count, nil
}

// tree reads a page and what is below it. path are the names of the buckets around.
func (b *boltFile) tree(id uint64, path [][]byte, depth int) error {
	page, flags, count, err := b.page(id)
	if err != nil {
		return err
	}
	return b.elements(page, flags, count, path, depth)
}

func (b *boltFile) elements(page []byte, flags uint16, count int, path [][]byte, depth int) error {
	if depth > boltDeepest || pageHeader+count*elementSize > len(page) || flags != branchPage && flags != leafPage {
		return fmt.Errorf("a page below %q is neither leaf nor branch", path)
	}
	var last []byte
	for i := range count {
		at := pageHeader + i*elementSize
		e := page[at:]
		if flags == branchPage {
			position, length := int(binary.NativeEndian.Uint32(e)), int(binary.NativeEndian.Uint32(e[4:]))
			_ = page[at+position : at+position+length]
			if err := b.tree(binary.NativeEndian.Uint64(e[8:]), path, depth+1); err != nil {
				return err
			}
			continue
		}
		kind, position := binary.NativeEndian.Uint32(e), at+int(binary.NativeEndian.Uint32(e[4:]))
		keyLength, length := int(binary.NativeEndian.Uint32(e[8:])), int(binary.NativeEndian.Uint32(e[12:]))
		k := page[position : position+keyLength]
		v := page[position+keyLength : position+keyLength+length]
		if i > 0 && bytes.Compare(last, k) >= 0 {
			return fmt.Errorf("keys below %q are not in order", path)
		}
		last = k
		switch {
		case kind == bucketLeaf:
			if len(v) < bucketHeader {
				return fmt.Errorf("bucket %q is cut short", k)
			}
			inner := slices.Concat(path, [][]byte{k})
			root := binary.NativeEndian.Uint64(v)
			if root != 0 {
				if err := b.tree(root, inner, depth+1); err != nil {
					return err
				}
				continue
			}
			small := v[bucketHeader:]
			if err := b.elements(small, binary.NativeEndian.Uint16(small[8:]), int(binary.NativeEndian.Uint16(small[10:])), inner, depth+1); err != nil {
				return err
			}
		case len(path) == 1 && bytes.Equal(path[0], bucketPods):
			var r record
			if err := json.Unmarshal(v, &r); err != nil || r.key() != string(k) {
				return fmt.Errorf("the record of %q cannot be read: %w", bytes.ReplaceAll(k, []byte{0}, []byte(" ")), errors.Join(err, errNotItself))
			}
		}
	}
	return nil
}

// freelist checks the list of pages that are free to be written to.
func (b *boltFile) freelist(id uint64) error {
	if id == ^uint64(0) { // it is not kept
		return nil
	}
	page, flags, count, err := b.page(id)
	if err != nil {
		return err
	}
	if flags != freelistPage {
		return fmt.Errorf("page %d is not the list of free pages", id)
	}
	list := page[pageHeader:]
	if count == 0xFFFF { // more than that: the first says how many
		count, list = int(binary.NativeEndian.Uint64(list)), list[8:]
	}
	if count < 0 || count > len(list)/8 {
		return fmt.Errorf("page %d has no room for the %d free pages that it is said to list", id, uint64(count))
	}
	for i := range count {
		if free := binary.NativeEndian.Uint64(list[8*i:]); free < 2 || free >= b.last || b.seen[free] {
			return fmt.Errorf("page %d is said to be free", free)
		}
	}
	return nil
}

// scrape finds records among bytes, wherever they lie. What was deleted may be among them.
func scrape(data []byte) (records []*record) {
	begin := []byte(`{"network":"`)
	for {
		at := bytes.Index(data, begin)
		if at < 0 {
			return records
		}
		data = data[at:]
		r := &record{}
		if err := json.NewDecoder(bytes.NewReader(data)).Decode(r); err == nil && r.ContainerID != "" && r.IfName != "" {
			records = append(records, r)
		}
		data = data[len(begin):]
	}
}
