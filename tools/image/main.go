// Command image checks a Dockerfile with the checks of BuildKit, which are those of
// docker build --check, where there is neither Docker nor a registry:
//
//	go run . lint FILE...
//
// It fails if there is anything to say. What an image is based on is not looked up.
//
//	go run . context FOLDER
//	go run . steps FILE STAGE
//
// print for scripts/image-steps which files of a folder a build gets to see, according to
// its .dockerignore, with a 0 byte after each, and what the RUN instructions of a stage
// give to the shell, in their order. It knows the shell form without options.
package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/moby/buildkit/client/llb"
	"github.com/moby/buildkit/client/llb/sourceresolver"
	"github.com/moby/buildkit/frontend/dockerfile/dockerfile2llb"
	"github.com/moby/buildkit/frontend/dockerfile/instructions"
	"github.com/moby/buildkit/frontend/dockerfile/parser"
	"github.com/moby/buildkit/frontend/subrequests/lint"
	"github.com/moby/patternmatcher/ignorefile"
	"github.com/opencontainers/go-digest"
	"github.com/tonistiigi/fsutil"
)

func main() {
	if err := run(os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func run(args []string) error {
	switch {
	case len(args) > 1 && args[0] == "lint":
		for _, file := range args[1:] {
			if err := check(file); err != nil {
				return err
			}
		}
		return nil
	case len(args) == 2 && args[0] == "context":
		return files(args[1])
	case len(args) == 3 && args[0] == "steps":
		return steps(args[1], args[2])
	}
	return fmt.Errorf("usage: image lint FILE... | image context FOLDER | image steps FILE STAGE")
}

func check(file string) error {
	text, err := os.ReadFile(file)
	if err != nil {
		return err
	}
	source := llb.NewSourceMap(nil, file, "Dockerfile", text)
	source.Definition = new(llb.Definition)
	results, err := dockerfile2llb.DockerfileLint(context.Background(), text, dockerfile2llb.ConvertOpt{
		SourceMap:    source,
		MetaResolver: nowhere{},
	})
	if err != nil {
		return fmt.Errorf("%s: %w", file, err)
	}
	found, err := json.Marshal(results)
	if err != nil {
		return err
	}
	if err := lint.PrintLintViolations(found, os.Stdout, nil); err != nil {
		return err
	}
	if len(results.Warnings) > 0 || results.Error != nil {
		return fmt.Errorf("%s: see https://docs.docker.com/reference/build-checks/", file)
	}
	return nil
}

// nowhere knows of every image that there is one, and nothing else of it.
type nowhere struct{}

func (nowhere) ResolveImageConfig(_ context.Context, ref string, _ sourceresolver.Opt) (string, digest.Digest, []byte, error) {
	config := []byte(`{"architecture":"amd64","os":"linux","config":{},"rootfs":{"type":"layers"}}`)
	return ref, digest.FromBytes(config), config, nil
}

func files(folder string) error {
	ignored, err := os.Open(filepath.Join(folder, ".dockerignore"))
	if err != nil {
		return err
	}
	defer ignored.Close()
	patterns, err := ignorefile.ReadAll(ignored)
	if err != nil {
		return err
	}
	// The same walk as that of docker build.
	filter, err := fsutil.NewFS(folder)
	if err == nil {
		filter, err = fsutil.NewFilterFS(filter, &fsutil.FilterOpt{ExcludePatterns: patterns})
	}
	if err != nil {
		return fmt.Errorf("%s: %w", ignored.Name(), err)
	}
	return filter.Walk(context.Background(), "", func(path string, entry fs.DirEntry, err error) error {
		if err == nil && !entry.IsDir() {
			fmt.Print(path, "\x00")
		}
		return err
	})
}

func steps(file, stage string) error {
	text, err := os.ReadFile(file)
	if err != nil {
		return err
	}
	parsed, err := parser.Parse(bytes.NewReader(text))
	if err != nil {
		return fmt.Errorf("%s: %w", file, err)
	}
	stages, _, err := instructions.Parse(parsed.AST, nil)
	if err != nil {
		return fmt.Errorf("%s: %w", file, err)
	}
	for _, s := range stages {
		if s.Name != stage {
			continue
		}
		for _, command := range s.Commands {
			if run, ok := command.(*instructions.RunCommand); ok {
				fmt.Println(strings.Join(run.CmdLine, " "))
			}
		}
		return nil
	}
	return fmt.Errorf("%s: there is no stage %q; name one of its stages", file, stage)
}
