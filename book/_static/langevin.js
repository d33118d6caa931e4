// Langevin chains on a known energy, with the step size and the temperature in the reader's hands.
// A page asks for it with <div data-demo="langevin"></div>; elsewhere this file does nothing, and
// where no script runs the figure before the element stands in.

(() => {
  "use strict";
  const MODES = [
    { x: -1.2, y: -0.5, weight: 0.5, std: 0.35 },
    { x: 1.0, y: -0.6, weight: 0.3, std: 0.35 },
    { x: 0.1, y: 1.2, weight: 0.2, std: 0.35 },
  ];
  const N_CHAINS = 400;
  const HALF = { x: 3.0, y: 2.4 }; // what the canvas shows
  const WIDTH = 600;
  const HEIGHT = Math.round((WIDTH * HALF.y) / HALF.x);

  // Energy and gradient of -log sum_i w_i N(x; mean_i, std_i^2 I), up to a constant.
  const terms = (x, y) =>
    MODES.map((m) => {
      const squares = (x - m.x) ** 2 + (y - m.y) ** 2;
      return Math.log(m.weight / m.std ** 2) - squares / (2 * m.std ** 2);
    });

  const energy = (x, y) => {
    const logs = terms(x, y);
    const top = Math.max(...logs);
    return -top - Math.log(logs.reduce((sum, value) => sum + Math.exp(value - top), 0));
  };

  const gradient = (x, y) => {
    const logs = terms(x, y);
    const top = Math.max(...logs);
    const shares = logs.map((value) => Math.exp(value - top));
    const total = shares.reduce((sum, value) => sum + value, 0);
    let gx = 0;
    let gy = 0;
    MODES.forEach((m, i) => {
      gx += ((shares[i] / total) * (x - m.x)) / m.std ** 2;
      gy += ((shares[i] / total) * (y - m.y)) / m.std ** 2;
    });
    return [gx, gy];
  };

  const normal = () =>
    Math.sqrt(-2 * Math.log(1 - Math.random())) * Math.cos(2 * Math.PI * Math.random());

  const nearest = (x, y) => {
    let best = 0;
    MODES.forEach((m, i) => {
      const b = MODES[best];
      if ((x - m.x) ** 2 + (y - m.y) ** 2 < (x - b.x) ** 2 + (y - b.y) ** 2) best = i;
    });
    return best;
  };

  class Demo {
    constructor(root) {
      this.root = root;
      root.classList.add("demo");
      this.canvas = document.createElement("canvas");
      this.canvas.width = WIDTH;
      this.canvas.height = HEIGHT;
      this.canvas.setAttribute("role", "img");
      this.canvas.setAttribute(
        "aria-label",
        "Points of Langevin chains over a map of an energy with three wells"
      );
      root.append(this.canvas);
      const controls = document.createElement("div");
      controls.className = "demo-controls";
      root.append(controls);
      // Both sliders are logarithmic: the value is 10 to the slider's position.
      this.step = this.slider(controls, "step size ε", -3, 0, -2);
      this.temperature = this.slider(controls, "temperature T", -3, 1, 0);
      this.button(controls, "restart", () => this.restart());
      this.pause = this.button(controls, "pause", () => this.toggle());
      this.status = document.createElement("p");
      this.status.className = "demo-status";
      root.append(this.status);
      this.background = this.map();
      this.restart();
      this.running = false;
      this.draw();
      if (window.matchMedia("(prefers-reduced-motion: reduce)").matches) {
        this.pause.textContent = "run";
      } else {
        this.toggle();
      }
    }

    slider(parent, name, low, high, start) {
      const label = document.createElement("label");
      const input = document.createElement("input");
      const output = document.createElement("output");
      Object.assign(input, { type: "range", min: low, max: high, step: 0.05, value: start });
      input.setAttribute("aria-label", name);
      const show = () => {
        output.textContent = (10 ** Number(input.value)).toPrecision(2);
        if (this.status) this.report();
      };
      input.addEventListener("input", show);
      label.append(`${name} `, input, output);
      parent.append(label);
      show();
      return () => 10 ** Number(input.value);
    }

    button(parent, name, action) {
      const button = document.createElement("button");
      button.type = "button";
      button.textContent = name;
      button.addEventListener("click", action);
      parent.append(button);
      return button;
    }

    restart() {
      this.chains = Array.from({ length: N_CHAINS }, () => [1.5 * normal(), 1.5 * normal()]);
      this.steps = 0;
      this.lost = 0;
      if (this.status) this.report();
    }

    toggle() {
      this.running = !this.running;
      this.pause.textContent = this.running ? "pause" : "run";
      if (this.running) this.frame();
    }

    frame() {
      if (!this.running) return;
      for (let i = 0; i < 2; i += 1) this.move();
      this.draw();
      if (this.steps % 20 === 0) this.report();
      window.requestAnimationFrame(() => this.frame());
    }

    move() {
      const step = this.step();
      const scale = Math.sqrt(step * this.temperature());
      this.lost = 0;
      for (const chain of this.chains) {
        const [gx, gy] = gradient(chain[0], chain[1]);
        chain[0] += -(step / 2) * gx + scale * normal();
        chain[1] += -(step / 2) * gy + scale * normal();
        // A chain that has left for good would overflow.
        if (!(Math.hypot(chain[0], chain[1]) < 1e6)) chain[0] = chain[1] = 1e6;
        if (Math.hypot(chain[0], chain[1]) > 10) this.lost += 1;
      }
      this.steps += 1;
    }

    map() {
      const image = document.createElement("canvas").getContext("2d").createImageData(150, 120);
      for (let row = 0; row < 120; row += 1) {
        for (let column = 0; column < 150; column += 1) {
          const x = ((column + 0.5) / 75 - 1) * HALF.x;
          const y = (1 - (row + 0.5) / 60) * HALF.y;
          const shade = Math.min(1, (energy(x, y) + 1.5) / 12);
          const at = 4 * (row * 150 + column);
          image.data.set([90 + 150 * shade, 130 + 112 * shade, 165 + 80 * shade, 255], at);
        }
      }
      const canvas = document.createElement("canvas");
      canvas.width = 150;
      canvas.height = 120;
      canvas.getContext("2d").putImageData(image, 0, 0);
      return canvas;
    }

    draw() {
      const context = this.canvas.getContext("2d");
      context.imageSmoothingEnabled = true;
      context.drawImage(this.background, 0, 0, WIDTH, HEIGHT);
      context.fillStyle = "rgba(120, 40, 0, 0.6)";
      for (const [x, y] of this.chains) {
        const px = (x / HALF.x + 1) * (WIDTH / 2);
        const py = (1 - y / HALF.y) * (HEIGHT / 2);
        context.fillRect(px - 1.5, py - 1.5, 3, 3);
      }
    }

    report() {
      if (this.lost > N_CHAINS / 2) {
        this.status.textContent = `step ${this.steps}: the chains have diverged; lower the step size and restart`;
        return;
      }
      const counts = MODES.map(() => 0);
      let squares = 0;
      for (const [x, y] of this.chains) {
        const mode = nearest(x, y);
        counts[mode] += 1;
        squares += (x - MODES[mode].x) ** 2 + (y - MODES[mode].y) ** 2;
      }
      const spread = Math.sqrt(squares / (2 * N_CHAINS));
      const percent = counts.map((n) => Math.round((100 * n) / N_CHAINS)).join(", ");
      const exact = MODES.map((m) => 100 * m.weight).join(", ");
      this.status.textContent =
        `step ${this.steps}: ${percent} % of the chains in the three wells (law at T = 1: ${exact} %); ` +
        `spread around their centres ${spread.toFixed(2)} (a well's: ${MODES[0].std})`;
    }
  }

  const start = () => document.querySelectorAll('[data-demo="langevin"]').forEach((e) => new Demo(e));
  if (document.readyState === "loading") document.addEventListener("DOMContentLoaded", start);
  else start();
})();
