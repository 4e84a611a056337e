// The axis of time: the clip's sound, what each second is worth to the answer, and the key frames.
// In: the file, an explanation, a player. Out: pixels of a canvas; a click on it moves the player.

const RATE = 8000; // Hz of the sound that is drawn
const LEFT = 10, RIGHT = 10, WAVE = 84, BARS = 64, AXIS = 24, GAP = 10; // CSS pixels

export class TimeAxis {
  constructor(canvas) {
    this.canvas = canvas;
    this.clear();
    new ResizeObserver(() => this.draw()).observe(canvas);
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => this.draw());
    canvas.addEventListener("click", (event) => {
      if (this.player && this.seconds) this.player.currentTime = Math.max(0, this.second(event.offsetX));
    });
  }

  clear() {
    this.peaks = null;
    this.seconds = 0;
    this.found = null;
    this.player = null;
  }

  // Draws the sound of a file, unless another clip has been chosen meanwhile; false if this browser cannot decode it.
  async hear(file) {
    this.file = file;
    try {
      const sound = await new OfflineAudioContext(1, 1, RATE).decodeAudioData(await file.arrayBuffer());
      if (this.file !== file) return true;
      this.peaks = peaks(sound, 1600);
      this.seconds = Math.max(this.seconds, sound.duration);
      return true;
    } catch {
      return false;
    } finally {
      this.draw();
    }
  }

  // Follows a <video> or <audio>.
  follow(player) {
    this.player = player;
    const length = () => {
      if (Number.isFinite(player.duration)) this.seconds = Math.max(this.seconds, player.duration);
      this.draw();
    };
    const turn = () => {
      if (player.currentTime >= this.until) player.pause();
      this.draw();
      if (!player.paused) requestAnimationFrame(turn);
    };
    player.addEventListener("loadedmetadata", length);
    player.addEventListener("play", turn);
    player.addEventListener("seeked", () => this.draw());
    player.addEventListener("pause", () => (this.until = Infinity));
    this.until = Infinity;
    if (player.readyState) length();
  }

  play(start, end) {
    this.player.currentTime = start;
    this.until = end;
    this.player.play();
  }

  show(found) {
    this.found = found;
    const ends = found ? found.deletions.flatMap((each) => each.windows.map(([, end]) => end)) : [];
    this.seconds = Math.max(this.seconds, ...ends);
    this.draw();
  }

  second(x) {
    return ((x - LEFT) / (this.canvas.clientWidth - LEFT - RIGHT)) * this.seconds;
  }

  place(second) {
    return LEFT + (second / this.seconds) * (this.canvas.clientWidth - LEFT - RIGHT);
  }

  draw() {
    this.canvas.hidden = !this.seconds;
    if (this.canvas.hidden) return;
    const lanes = this.found?.deletions.length ?? 0;
    const height = WAVE + lanes * (BARS + GAP) + AXIS;
    const { canvas } = this, width = canvas.clientWidth, scale = devicePixelRatio;
    canvas.style.height = `${height}px`;
    canvas.width = width * scale;
    canvas.height = height * scale;
    if (!width) return;
    const pen = canvas.getContext("2d"), style = getComputedStyle(canvas);
    const colour = (name) => style.getPropertyValue(`--${name}`);
    pen.scale(scale, scale);
    pen.font = `12px ${style.fontFamily}`;
    const body = height - AXIS;

    pen.fillStyle = colour("patched-soft");
    for (const each of this.found?.cited ?? []) {
      pen.fillRect(this.place(each.start), 0, this.place(each.end) - this.place(each.start), body);
    }
    this.wave(pen, colour);
    this.found?.deletions.forEach((each, i) => this.bars(pen, colour, each, WAVE + GAP + i * (BARS + GAP)));
    this.axis(pen, colour, body);
    if (this.player) {
      pen.fillStyle = colour("ink");
      pen.fillRect(this.place(this.player.currentTime) - 0.75, 0, 1.5, body);
    }
  }

  wave(pen, colour) {
    const middle = WAVE / 2;
    pen.fillStyle = colour("line");
    pen.fillRect(LEFT, middle - 0.5, this.canvas.clientWidth - LEFT - RIGHT, 1);
    if (!this.peaks) return;
    pen.fillStyle = colour("sound");
    const { low, high, step, most } = this.peaks;
    const scale = (middle - 4) / Math.max(0.05, most);
    const width = Math.max(1, this.place(step) - this.place(0));
    low.forEach((bottom, i) => {
      const top = middle - high[i] * scale;
      pen.fillRect(this.place(i * step), top, width, Math.max(1, (high[i] - bottom) * scale));
    });
  }

  // How much less likely the answer is without each window, in nats.
  bars(pen, colour, { sense, windows, lost }, top) {
    const most = Math.max(1, ...lost);
    windows.forEach(([start, end], i) => {
      const cited = this.found.cited.some((each) => each.sense === sense && each.start === start && each.end === end);
      const height = (Math.max(0, lost[i]) / most) * (BARS - 18), middle = this.place((start + end) / 2);
      const width = Math.max(2, (this.place(end) - this.place(start)) * 0.4);
      pen.fillStyle = colour(cited ? "patched" : "faint");
      pen.fillRect(middle - width / 2, top + BARS - height, width, Math.max(1, height));
    });
    pen.fillStyle = colour("soft");
    pen.textAlign = "left";
    pen.fillText(`${sense}: lost without this second`, LEFT, top + 11);
  }

  axis(pen, colour, top) {
    const room = (this.canvas.clientWidth - LEFT - RIGHT) / 44; // labels that fit
    const step = [0.5, 1, 2, 5, 10, 20, 30, 60, 120, 300].find((each) => this.seconds / each <= room) ?? 600;
    pen.fillStyle = colour("line");
    pen.fillRect(LEFT, top, this.canvas.clientWidth - LEFT - RIGHT, 1);
    pen.fillStyle = colour("soft");
    for (let at = 0; at <= this.seconds + 1e-6; at += step) {
      pen.textAlign = at === 0 ? "left" : at + step > this.seconds + 1e-6 ? "right" : "center";
      pen.fillText(`${Number(at.toFixed(1))} s`, this.place(at), top + 18);
    }
    pen.fillStyle = colour("sound");
    for (const at of this.found?.key_times ?? []) pen.fillRect(this.place(at) - 1, top - 2, 2, 6);
  }
}

// The least and the greatest sample of each of `bins` parts of a sound, all channels together.
function peaks(sound, bins) {
  const size = Math.max(1, Math.ceil(sound.length / bins)), count = Math.ceil(sound.length / size);
  const low = new Float32Array(count), high = new Float32Array(count);
  let most = 0;
  for (let channel = 0; channel < sound.numberOfChannels; channel++) {
    sound.getChannelData(channel).forEach((value, i) => {
      const bin = Math.floor(i / size);
      low[bin] = Math.min(low[bin], value);
      high[bin] = Math.max(high[bin], value);
      most = Math.max(most, Math.abs(value));
    });
  }
  return { low, high, step: size / sound.sampleRate, most };
}
