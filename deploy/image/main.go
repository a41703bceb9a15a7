// Command image puts folders of files into an OCI image, without Docker or a registry: scripts/image calls it. The
// archives that it writes are OCI image layouts and what `docker save` writes at once, so that `ctr image import`,
// `docker load`, skopeo and crane all read them. From the same files it makes the same bytes.
//
// Formats: https://github.com/opencontainers/image-spec (layout, index, manifest, config), and for manifest.json
// https://github.com/moby/docker-image-spec.
package main

import (
	"flag"
	"fmt"
	"os"
	"path"
	"path/filepath"
	"strings"
	"time"
)

// options say what is made. All of it goes into the image's digest.
type options struct {
	name     string   // repository: "weft", "registry.example/net/weft"
	tags     []string // of it
	version  string
	revision string    // commit
	created  time.Time // of every file, too
	entry    string    // program that runs where nothing else is said
	out      string    // folder of the archives
}

// image is one platform's, ready to be written.
type image struct {
	arch     string
	config   blob
	manifest blob
	layer    blob
	sbom     []byte // SPDX, also in the layer
}

func main() {
	var o options
	tags := flag.String("tags", "latest", "tags, with commas")
	created := flag.Int64("created", 0, "seconds since 1970: the date of everything in it (SOURCE_DATE_EPOCH)")
	flag.StringVar(&o.name, "name", "weft", "repository")
	flag.StringVar(&o.version, "version", "", "of what is in it")
	flag.StringVar(&o.revision, "revision", "", "the commit that it is made from")
	flag.StringVar(&o.entry, "entrypoint", "/usr/local/bin/weft", "program that runs where nothing else is said")
	flag.StringVar(&o.out, "out", ".", "folder for the archives")
	flag.Parse()
	o.tags, o.created = strings.Split(*tags, ","), time.Unix(*created, 0).UTC()
	if err := run(o, flag.Args()); err != nil {
		fmt.Fprintln(os.Stderr, "image:", err)
		os.Exit(1)
	}
}

// run makes an archive for each ARCH=FOLDER, and one with all of them.
func run(o options, roots []string) error {
	var all []*image
	for _, r := range roots {
		arch, root, ok := strings.Cut(r, "=")
		if !ok {
			return fmt.Errorf("%s: want ARCH=FOLDER", r)
		}
		img, err := o.build(arch, root)
		if err != nil {
			return fmt.Errorf("%s: %w", arch, err)
		}
		all = append(all, img)
		base := filepath.Join(o.out, path.Base(o.name)+"-"+o.version+"-"+arch)
		if err := os.WriteFile(base+".spdx.json", img.sbom, 0o644); err != nil {
			return err
		}
		if err := o.write(base+".tar", []*image{img}); err != nil {
			return err
		}
		fmt.Printf("%s sha256:%s %s.tar\n", arch, img.manifest.digest, base)
	}
	if len(all) < 2 {
		return nil
	}
	file := filepath.Join(o.out, path.Base(o.name)+"-"+o.version+".tar")
	if err := o.write(file, all); err != nil {
		return err
	}
	fmt.Printf("all sha256:%s %s\n", o.index(all).digest, file)
	return nil
}
