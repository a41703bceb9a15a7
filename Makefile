# Every target is one line around a script or a go command; the scripts say what they do.
.PHONY: help build test lab lint bench image release clean

help: ## list the targets
	@grep -hE '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 12

build: ## build bin/weft and bin/weft-cni
	go build -trimpath -o bin/ ./cmd/...
	CGO_ENABLED=0 go build -trimpath -ldflags '-s -w' -o bin/weft-cni ./cnibin

test: ## everything that CI runs
	scripts/test

lab: ## compare the ways of carrying packets on this machine
	scripts/lab

lint: ## format, vet, staticcheck; golangci-lint as well where it is installed
	gofmt -l $$(git ls-files '*.go')
	go vet ./...
	go tool staticcheck ./...
	! command -v golangci-lint >/dev/null || golangci-lint run

bench: ## what a stage costs per packet
	go test -run '^$$' -bench . -benchtime 200ms ./packet/... ./dataplane/... ./encap/...

image: ## an OCI image, for amd64 and arm64, without Docker
	scripts/image

release: ## programs, packages, images, manifest and checksums of a version into dist/: make release VERSION=v1.2.3
	scripts/release $(VERSION)

clean: ## remove what the build made
	rm -rf bin dist
