package main

import (
	"fmt"
	"image/color"
	"os"
	"path/filepath"
	"strings"

	"gonum.org/v1/plot"
	"gonum.org/v1/plot/plotter"
	"gonum.org/v1/plot/plotutil"
	"gonum.org/v1/plot/vg"
)

// write writes the page and its plots.
func write(rep *report, path string) error {
	dir := strings.TrimSuffix(path, filepath.Ext(path))
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	if err := draw(rep, dir); err != nil {
		return fmt.Errorf("plots: %w", err)
	}
	return os.WriteFile(path, []byte(render(rep, filepath.Base(dir))), 0o644)
}

// draw draws what a curve says better than a table.
func draw(rep *report, dir string) error {
	if points := rep.Script.Points; len(points) > 0 {
		c := newChart("Server time of a call", "calls a 64th of the window apart", "microseconds")
		var ours, theirs plotter.XYs
		for _, p := range points {
			ours = append(ours, plotter.XY{X: float64(p.Pass), Y: p.Ours})
			theirs = append(theirs, plotter.XY{X: float64(p.Pass), Y: p.Theirs})
		}
		c.line("this module", ours)
		c.line("redis_rate", theirs)
		c.plot.Y.Min = 0
		if err := c.save(dir, "script"); err != nil {
			return err
		}
	}
	if points := rep.Growth.Keys; len(points) > 0 {
		c := newChart("Decisions over the number of keys", "keys, asked for at random", "decisions/s")
		c.logarithmic(&c.plot.X)
		c.logarithmic(&c.plot.Y)
		var leases, direct, memory plotter.XYs
		for _, p := range points {
			x := float64(p.Keys)
			leases = append(leases, plotter.XY{X: x, Y: p.Leases})
			direct = append(direct, plotter.XY{X: x, Y: p.Direct})
			memory = append(memory, plotter.XY{X: x, Y: p.Memory})
		}
		c.line("leases on", leases)
		c.line("leases off", direct)
		c.line("memory", memory)
		if err := c.save(dir, "keys"); err != nil {
			return err
		}
	}
	if len(rep.Accuracy) == 0 {
		return nil
	}
	c := newChart("Attack: "+attackEdges, "time, in windows", "granted in the window before, in L")
	for _, o := range rep.Accuracy {
		// The map of eight processes is off the scale.
		if o.Attack != attackEdges || o.Subject == nameDirect || o.Subject == nameLeases || o.Subject == nameFloor {
			continue
		}
		var points plotter.XYs
		for _, p := range o.curve {
			points = append(points, plotter.XY{X: p.Windows, Y: p.Share})
		}
		c.line(o.Subject, points)
	}
	c.plot.Y.Min = 0
	c.plot.Y.Tick.Marker = plot.ConstantTicks{{Value: 0, Label: "0"}, {Value: 1, Label: "L"}, {Value: 2, Label: "2 L"}}
	return c.save(dir, "accuracy")
}

// chart is a plot of lines, each of another colour and dash.
type chart struct {
	plot  *plot.Plot
	lines int
	err   error
}

func newChart(title, x, y string) *chart {
	p := plot.New()
	p.Title.Text, p.X.Label.Text, p.Y.Label.Text = title, x, y
	p.BackgroundColor = color.White // also where the page is dark
	p.Legend.Top, p.Legend.Left = true, true
	p.Legend.Padding = vg.Points(2)
	p.Add(plotter.NewGrid())
	return &chart{plot: p}
}

func (c *chart) logarithmic(axis *plot.Axis) {
	axis.Scale = plot.LogScale{}
	axis.Tick.Marker = plot.LogTicks{Prec: -1}
}

func (c *chart) line(name string, points plotter.XYs) {
	line, err := plotter.NewLine(points)
	if err != nil {
		c.err = fmt.Errorf("%s: %w", name, err)
		return
	}
	line.Color, line.Dashes, line.Width = plotutil.Color(c.lines), plotutil.Dashes(c.lines), vg.Points(1.5)
	c.lines++
	c.plot.Add(line)
	c.plot.Legend.Add(name, line)
}

func (c *chart) save(dir, name string) error {
	if c.err != nil {
		return c.err
	}
	// Room for the legend above the lines.
	if _, log := c.plot.Y.Scale.(plot.LogScale); log {
		c.plot.Y.Max *= 20
	} else {
		c.plot.Y.Max *= 1.4
	}
	return c.plot.Save(18*vg.Centimeter, 11*vg.Centimeter, filepath.Join(dir, name+".svg"))
}
